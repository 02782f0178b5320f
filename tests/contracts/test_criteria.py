"""What every criterion in conf/method must do; a new YAML is picked up by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from criteria_models import MAKERS, Case, half, kill, make, permute, structure_of, within_groups
from torch import Tensor, nn

from lightning_modules.pruning.criteria import Calibration
from lightning_modules.pruning.removal import remove
from lightning_modules.recipe import Recipe
from tests.facts import hold


def criterion_of(recipe: Mapping[str, Any]) -> Any:
    return Recipe.from_json(recipe).build()


def recipes(*granularities: str) -> dict[str, dict[str, Any]]:
    """Criteria of the YAMLs, each once, by the shortest name; those that choose among other methods
    have none.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(
        (Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"),
        key=lambda p: (len(p.stem), p),
    ):
        data = yaml.safe_load(path.read_text())
        data = data.get(
            "method", data
        )  # a YAML that sets more than the method has it one level down
        fits = not data.get("among") and data.get("granularity", "unit") in granularities
        if (
            fits
            and data.get("criterion")
            and criterion_of(data["criterion"]) not in map(criterion_of, found.values())
        ):
            found[path.stem] = data["criterion"]
    return dict(sorted(found.items()))


METHODS = recipes("unit")
WEIGHTS = {
    name: recipe
    for name, recipe in recipes("unit", "weight", "block", "pattern").items()
    if hasattr(criterion_of(recipe), "weights")
}

BLIND = {"Random"}
DATA_FREE = {"Random", "Magnitude", "Lamp", "BnScale", "GeometricMedian", "Cosine", "SynFlow"}
# where a dead unit (all its weights zero) need not come last
DEAD_MAY_STAY = {
    "Random": "looks at nothing",
    "GeometricMedian": "a distance: from others that all lie on one side, zero is the farthest",
    "Grasp": "scores of either sign: others would raise the gradient flow by going",
    "Movement": "scores of either sign: others move towards zero",
    "Ablation": (
        "the loss may fall when others go; with slices it shares the score of its neighbours"
    ),
}
DEAD_WEIGHT_MAY_STAY = {
    "Random": "looks at nothing",
    "Gradient": "a zero weight may have the largest gradient: regrowth lives on that",
    "Grasp": "scores of either sign",
    "Movement": "scores of either sign, and a zero weight moves away from zero",
}


# Criteria whose way through a model is that of another one, which is tried on every coupling.
SAME_WAY_AS = {
    "l1": "l2",
    "linf": "l2",
    "grasp": "gradient",
    "movement": "gradient",
    "snip": "gradient",
    "fpgm": "cosine",
    "apoz": "activation",
    "rank": "activation",
}
FEW = ["blocks", "recurrent", "residual"]


SEVERAL_PASSES = ("ablation", "grasp", "synflow")
"""Criteria that take many passes: most couplings are for `make slow`."""


def pairs(names: Iterable[str]) -> list[Any]:
    chosen = []
    for name in names:
        for coupling in FEW if name in SAME_WAY_AS else sorted(MAKERS):
            late = name in SEVERAL_PASSES and coupling not in ("recurrent", "plain", "encoder")
            chosen.append(pytest.param(name, coupling, marks=[pytest.mark.slow] * late))
    return chosen


def build(method: str) -> Any:
    return criterion_of(METHODS[method])


def weigh(weighing: str) -> Any:
    return criterion_of(WEIGHTS[weighing])


def calibration(seed: int = 0, count: int = 3, dtype: torch.dtype = torch.float64) -> Calibration:
    generator = torch.Generator().manual_seed(5)
    batches = [
        [
            torch.randn(6, 1, 8, 8, generator=generator).to(dtype),
            torch.randint(10, (6,), generator=generator),
        ]
        for _ in range(count)
    ]
    return Calibration(
        batches, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), seed
    )


def names_of(case: Case) -> list[str]:
    return [name for name, parameter in case.model.named_parameters() if parameter.dim() >= 2]


def assert_same(left: Any, right: Any, name: str = "") -> None:
    left, right = np.asarray(left), np.asarray(right)
    slack = 1e-7 * max(float(np.abs(right).max()), 1e-12)
    np.testing.assert_allclose(left, right, rtol=1e-6, atol=slack, err_msg=name)


class Scored:
    """The units of a model by a criterion; what several facts need is scored once."""

    def __init__(self, name: str, coupling: str) -> None:
        self.name, self.coupling, self.criterion = name, coupling, build(name)
        self.kind, self.structure = type(self.criterion).__name__, structure_of(coupling)

    def case(self) -> Case:
        """A model of its own, always the same."""
        return Case(make(self.coupling), self.structure)

    def by(self, case: Case, data: Calibration) -> np.ndarray:
        return self.criterion(case.model, case.structure, data)

    @cached_property
    def scores(self) -> np.ndarray:
        return self.by(self.case(), calibration())


class Weighed(Scored):
    """Its single weights."""

    def __init__(self, name: str, coupling: str) -> None:
        super().__init__(name, coupling)
        self.criterion = weigh(name)
        self.kind, self.tensors = type(self.criterion).__name__, names_of(self.case())

    def by(self, case: Case, data: Calibration) -> dict[str, Tensor]:
        return self.criterion.weights(case.model, self.tensors, data)

    def flat(self, case: Case, data: Calibration) -> np.ndarray:
        return np.concatenate([value.flatten().numpy() for value in self.by(case, data).values()])

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        return self.by(self.case(), calibration())


def test_every_kind_of_coupling_is_there() -> None:
    kinds = {group.kind for name in MAKERS for group in structure_of(name).groups}
    assert {"channel", "neuron", "head", "head_dim", "conv_group", "recurrent", "block"} <= kinds
    assert len(METHODS) >= 20
    assert set(SAME_WAY_AS) | set(SAME_WAY_AS.values()) <= set(METHODS)
    assert not set(SAME_WAY_AS) & set(SAME_WAY_AS.values())


@pytest.mark.parametrize(("method", "coupling"), pairs(METHODS))
def test_a_criterion_keeps_the_contract_of_units(method: str, coupling: str) -> None:
    facts = [
        scores_are_one_finite_number_per_unit,
        scores_are_the_same_twice_and_leave_the_model_alone,
        scores_do_not_depend_on_the_order_of_batches,
        all_batches_count_where_data_counts,
        a_dead_unit_comes_last,
        scores_follow_the_units_when_they_are_permuted,
        a_pruned_model_is_scored_in_dense_ids,
        what_is_not_a_number_is_not_hidden,
    ]
    hold(facts, Scored(method, coupling))


@pytest.mark.parametrize(("weighing", "coupling"), pairs(WEIGHTS))
def test_a_criterion_keeps_the_contract_of_weights(weighing: str, coupling: str) -> None:
    facts = [
        weights_are_one_finite_number_each,
        weights_are_the_same_twice_and_leave_the_model_alone,
        weights_do_not_depend_on_the_order_of_batches,
        a_zero_weight_comes_last,
        weights_follow_the_units_when_they_are_permuted,
    ]
    hold(facts, Weighed(weighing, coupling))


def scores_are_one_finite_number_per_unit(this: Scored) -> None:
    case = this.case()
    case.model.float()
    scores = this.by(case, calibration(dtype=torch.float32))
    assert scores.shape == (case.structure.n_units,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    # a group that is 0 throughout would be pruned blindly
    blind = [g.name for g in case.structure.groups if scores[g.units].any() == (g.kind == "block")]
    assert not blind


def scores_are_the_same_twice_and_leave_the_model_alone(this: Scored) -> None:
    case = this.case()
    assert_untouched(case, lambda: this.by(case, calibration()), this.scores)


def weights_are_the_same_twice_and_leave_the_model_alone(this: Weighed) -> None:
    case, before = (
        this.case(),
        np.concatenate([value.flatten().numpy() for value in this.scores.values()]),
    )
    assert_untouched(case, lambda: this.flat(case, calibration()), before)


def assert_untouched(case: Case, score: Callable[[], np.ndarray], before: np.ndarray) -> None:
    """In a model that is partly in train mode, with gradients of its own and a draw of random
    numbers between.
    """
    model = case.model.train()
    next(iter(model.children())).eval()
    kept = list(model.parameters())[-1]
    kept.grad = torch.ones_like(kept)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    switches = (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
    )
    torch.randn(3)
    random = torch.get_rng_state()
    with torch.no_grad():
        after = score()
    assert torch.equal(torch.get_rng_state(), random)
    assert (before == after).all()
    changed = [
        name for name, value in model.state_dict().items() if not torch.equal(value, values[name])
    ]
    assert not changed
    assert {
        name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()
    } == tensors
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not kept)
    now = (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
    )
    assert now == switches


def backward() -> Calibration:
    forward = calibration()
    return replace(forward, batches=forward.batches[::-1])


def scores_do_not_depend_on_the_order_of_batches(this: Scored) -> None:
    assert_same(this.by(this.case(), backward()), this.scores)


def weights_do_not_depend_on_the_order_of_batches(this: Weighed) -> None:
    for name, score in this.by(this.case(), backward()).items():
        assert_same(score, this.scores[name], name)


def all_batches_count_where_data_counts(this: Scored) -> None:
    other = replace(
        calibration(), batches=[*calibration().batches[:2], calibration(count=4).batches[3]]
    )
    assert (this.scores == this.by(this.case(), other)).all() == (this.kind in DATA_FREE)


def a_dead_unit_comes_last(this: Scored) -> None:
    if this.kind in DEAD_MAY_STAY:
        return
    case = this.case()
    kill(case)
    scores = this.by(case, calibration())
    for group in case.structure.groups:
        if not group.members:
            continue
        if this.kind == "Gradient" and not group.mask_exact:
            # a reduction over the units, such as LayerNorm's mean, still sends gradients to a dead
            # one
            continue
        assert scores[group.start + 1] <= scores[group.units].min() + 1e-12, group.name


def a_zero_weight_comes_last(this: Weighed) -> None:
    if this.kind in DEAD_WEIGHT_MAY_STAY:
        return
    case = this.case()
    with torch.no_grad():
        for name in this.tensors:
            case.model.get_parameter(name).flatten()[3] = 0.0
    for name, score in this.by(case, calibration()).items():
        assert score.flatten()[3] == score.min() == 0.0, name


def scores_follow_the_units_when_they_are_permuted(this: Scored) -> None:
    if this.kind in BLIND:
        return
    case, order = this.case(), within_groups(this.structure)
    permute(case, order)
    assert_same(this.by(case, calibration()), this.scores[order])


def weights_follow_the_units_when_they_are_permuted(this: Weighed) -> None:
    if this.kind in BLIND:
        return
    case = this.case()
    did = permute(case, within_groups(case.structure))
    for name, score in this.by(case, calibration()).items():
        assert_same(score, did[name](this.scores[name]), name)


def a_pruned_model_is_scored_in_dense_ids(this: Scored) -> None:
    keep = half(this.structure)
    case = Case(remove(this.case().model, this.structure, keep), this.structure.restrict(keep))
    scores = this.by(case, calibration())
    assert scores.shape == keep.shape
    assert np.isfinite(scores).all()
    assert not scores[~keep].any()
    # a unit left alone in its group has no distance to others, and what went with a block has no
    # members
    several = [
        group for group in case.structure.groups if group.members and keep[group.units].sum() > 1
    ]
    assert [group.name for group in several if not scores[group.units].any()] == []


def weights_are_one_finite_number_each(this: Weighed) -> None:
    case = this.case()
    case.model.float()
    found = this.by(case, calibration(dtype=torch.float32))
    assert list(found) == this.tensors
    for name, score in found.items():
        weight = case.model.get_parameter(name)
        assert (score.shape, score.dtype, score.device) == (
            weight.shape,
            torch.float32,
            weight.device,
        ), name
        assert score.isfinite().all(), name
        assert not score.requires_grad, name


def what_is_not_a_number_is_not_hidden(this: Scored) -> None:
    if this.kind in BLIND:
        return
    case, group = this.case(), this.structure.groups[0]
    with torch.no_grad():
        for member in group.members:
            if member.role == "out" and case.model.state_dict()[member.tensor].is_floating_point():
                case.model.state_dict()[member.tensor].fill_(float("nan"))
    assert np.isnan(this.by(case, calibration())[group.units]).any()
