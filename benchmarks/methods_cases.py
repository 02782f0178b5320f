"""The rows of benchmarks/methods.py: which method, at which target, against which reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.search.space.choices import ACTIVATION

ROUNDS = 4
"""Of finetuning, a quarter of the steps each: what several pruning steps, stages or a penalty
share.
"""
# fmt: off
CRITERIA = (
    "random", "l1", "l2", "linf", "lamp", "global_lamp", "isomorphic", "fpgm", "cosine",
    "bn_scale", "activation",
    "apoz", "rank", "correlation", "taylor", "fisher", "gradient", "movement", "snip", "grasp",
    "synflow", "ablation",
)
# fmt: on
ONCE = f"space.shapes=[one_shot] space.steps=[1,1] space.rounds=[{ROUNDS},{ROUNDS}]"
OFTEN = f"space.shapes=[one_shot] space.steps=[{ROUNDS},{ROUNDS}] space.rounds=[1,1]"
HALF = "space.shapes=[one_shot] space.steps=[1,1] space.rounds=[2,2]"
SKIPPED = {
    "search": "a choice among methods, not a method",
    "head_dim": "narrows attention heads; this net has none",
}


@dataclass(frozen=True)
class Case:
    """One row: a method at one target; `params` are what the space is told beside the chain's
    parameters.

    `reference` is the row with random scores that it is measured against.
    """

    name: str
    method: str
    table: str
    target: str
    reference: str
    flops_ratio: float = 0.5
    overrides: str = ONCE
    params: tuple[tuple[str, Any], ...] = ()
    blind: bool = False  # random scores in the place of the method's

    @property
    def key(self) -> str:
        return f"{self.name} @ {self.target}"


def cases() -> list[Case]:
    """All rows, the random ones of each table first."""
    found = []
    ways = dict.fromkeys(CRITERIA, ONCE) | {"depth": ONCE, "soft_filter": OFTEN}
    ways |= {
        name: HALF for name in ("slimming", "group_lasso", "growing")
    }  # the other half goes under the penalty
    for target, ratio in (("50 % MACs", 0.5), ("20 % MACs", 0.2)):
        found += [
            Case(
                name, name, "units", target, f"random @ {target}", ratio, f"space=allocation {how}"
            )
            for name, how in ways.items()
        ]
    most = (("threshold", 0.9),)
    singles = [
        "random",
        "l1",
        "lamp",
        "taylor",
        "fisher",
        "gradient",
        "movement",
        "snip",
        "grasp",
        "synflow",
    ]
    sparse = [f"weight_{name}" for name in singles] + ["rigl", "set", "surgery"]
    found += [
        Case(
            name,
            name,
            "weights",
            "90 % sparsity",
            "weight_random @ 90 % sparsity",
            0.1,
            f"space=uniform {ONCE}",
            most,
        )
        for name in sparse
    ]
    ranked = f"space=uniform {ONCE} method.scope=global method.normalize=false"
    found += [
        Case(
            f"{name}, global",
            name,
            "weights",
            "90 % sparsity",
            "weight_random @ 90 % sparsity",
            0.1,
            ranked,
            most,
        )
        for name in ("weight_l1",)
    ]
    found += by_chance("block", "90 % sparsity", "patterns", f"space=uniform {ONCE}", most)
    for name, share in (("nm_2_4", "2 of 4"), ("nm_1_4", "1 of 4")):
        found += by_chance(name, f"{share} weights", "patterns", f"space=patterns {ONCE}", (), 0.0)
    both = "50 % MACs, then "
    found += by_chance("hybrid", f"{both}80 % sparsity", "both", HALF, (("then.sparsity", 0.8),))
    found += by_chance(
        "hybrid_nm", f"{both}2 of 4 weights", "both", HALF, (("then.applied", True),)
    )
    for kind, level_of, words in (
        ("topk", 0.5, "half of the activations"),
        ("threshold", 0.3, "activations over 0.3"),
    ):
        name, target = f"activation_{kind}", f"50 % MACs, {words}"
        found += by_chance(
            name, target, "both", f"space=allocation {ONCE}", ((ACTIVATION, level_of),)
        )
    found += by_chance("int8", "50 % MACs, int8", "both", f"space=allocation {ONCE}")
    return found


def by_chance(
    name: str,
    target: str,
    table: str,
    overrides: str,
    params: tuple[tuple[str, Any], ...] = (),
    ratio: float = 0.5,
) -> list[Case]:
    """A method, and before it the same with random scores in every stage."""
    reference = f"{name}, random"
    same = (table, target, f"{reference} @ {target}", ratio, overrides, params)
    return [Case(reference, name, *same, blind=True), Case(name, name, *same)]


DENSE = (
    Case("dense", "l1", "dense", "dense", ""),
    Case("dense, finetuned as long", "l1", "dense", "dense", ""),
)
