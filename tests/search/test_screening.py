"""Allocations of equal cost, compared before training: what may be chosen, and that it can be done once more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import orchestrator
from lightning_modules.pruning import thresholds
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Counts
from orchestrator.search.plans.finished import nearest_parent, read_plan
from orchestrator.search.trials.pruners import UnitPruner
from orchestrator.search.trials.screening import Screened, candidates, screen
from orchestrator.search.trials.working import Working
from tests.search.problems import CONF, Bench, bench, silent

QUICK = ["phases.finetune.unit_steps=2", "phases.finetune.recalibration_batches=1", "space.units=[1,1]"]
MANY = [*QUICK, "search.screening.share=1.0", "search.screening.batches=1"]  # six candidates for four steps


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the dense baselines of this module stand: each is trained once."""
    return tmp_path_factory.mktemp("home")


def wanted(here: Bench, ratio: float) -> Counts:
    return here.evaluator.wanted(here.propose(ratio)).kept


def pruner_of(here: Bench) -> UnitPruner:
    found = next(iter(here.methods.values())).stages[0].pruner
    assert isinstance(found, UnitPruner)
    return found


def dense(here: Bench) -> Working:
    return Working(here.problem.model, here.problem.structure.full())


def cut(here: Bench, kept: Counts) -> Working:
    """The dense model cut to these counts, as a parent would be."""
    structure = here.problem.structure
    keep = thresholds.choose(structure, np.zeros(structure.n_units), structure.full(), kept)
    return Working(remove(here.problem.model, structure, keep), keep)


def screened(here: Bench, working: Working, proposed: Counts, tries: int = 12, seed: int = 3, **more: Any) -> Screened:
    return screen(pruner_of(here), working, proposed, (), tries, seed, **more)


MODELS = {
    "channels": ["method=l2"],
    "rounded": ["method=l2", "method.round_to=4", "model.width=16"],
    "blocks": ["method=depth", "model.blocks=2"],
    "heads": ["model=vit_small", "model.width=16", "phases=deep"],
    "head_dim": ["model=vit_small", "model.width=16", "method=head_dim", "phases=deep"],
    "recurrent": ["model=lstm_rows", "phases=deep"],
}


@pytest.mark.parametrize("name", MODELS)
def test_a_choice_costs_no_more_fits_the_parent_and_is_no_worse(home: Path, tmp_path: Path, name: str) -> None:
    here = bench(home, tmp_path, *MODELS[name])
    structure, macs = here.problem.structure, here.problem.cost.macs
    blocks = np.array([group.kind == "block" for group in structure.groups])
    extra = {"blocks": 1} if blocks.any() else {}
    proposed = here.evaluator.wanted(here.propose(0.3, **extra)).kept
    wide = here.evaluator.wanted(here.propose(0.6)).kept
    if blocks.any():
        wide = np.where(blocks, proposed, wide)
    changed = 0
    for working in (dense(here), cut(here, wide)):
        found = screened(here, working, proposed)
        now = structure.counts(working.alive)
        assert macs(found.kept) <= macs(proposed)
        assert macs(found.kept) >= 0.8 * macs(proposed)
        assert (found.kept <= now).all()
        assert (found.kept >= structure.least).all()
        assert (found.kept[blocks] == proposed[blocks]).all()
        assert found.chosen <= found.proposed
        step = pruner_of(here).method.round_to
        assert all(count % step == 0 or count == size for count, size in zip(found.kept, structure.sizes, strict=True))
        changed += int((found.kept != proposed).any())
        again = screened(here, working, proposed)
        assert (again.kept == found.kept).all()
        assert again.to_json() == found.to_json()
    assert changed or name in ("recurrent", "heads")


def test_without_tries_it_is_the_proposal_or_what_the_parent_leaves_of_it(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=l2")
    proposed = wanted(here, 0.3)
    found = screened(here, dense(here), proposed, 0)
    assert (found.kept == proposed).all()
    assert (found.tried, found.chosen) == (0, found.proposed)
    assert not found.octaves.any()
    narrow = wanted(here, 0.6)
    narrow[0] = max(1, proposed[0] // 2)
    clipped = screened(here, cut(here, narrow), proposed, 0).kept
    assert clipped[0] == narrow[0]
    assert (clipped[1:] >= proposed[1:]).all()  # what is not to be had there is kept elsewhere, at the same cost
    assert here.problem.cost.macs(clipped) <= here.problem.cost.macs(proposed)


def test_a_width_that_a_guard_left_odd_is_not_kept_odd(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=l2", "method.round_to=4", "model.width=16")
    odd = here.problem.structure.sizes - 3
    found = screened(here, cut(here, odd), wanted(here, 0.7), 6).kept
    assert all(count % 4 == 0 for count in found)


def test_counts_outside_a_bound_are_not_chosen(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=l2", "model.width=16")
    proposed, params = wanted(here, 0.3), here.problem.cost.params
    free = screened(here, dense(here), proposed, 20).kept
    most = params(proposed)
    bound: Callable[[Counts], bool] = lambda kept: params(kept) <= most  # noqa: E731
    assert params(screened(here, dense(here), proposed, 20, allowed=bound).kept) <= most
    narrow = np.maximum(1, proposed.copy())
    narrow[0] = max(1, proposed[0] // 2)
    tight: Callable[[Counts], bool] = lambda kept: bool((kept <= proposed).all())  # noqa: E731
    wide = np.maximum(narrow, here.problem.structure.sizes)
    wide[0] = narrow[0]
    assert (screened(here, cut(here, wide), proposed, 5, allowed=tight).kept == np.minimum(proposed, wide)).all()
    assert (free != proposed).any()


def test_other_seeds_walk_elsewhere_and_more_tries_are_no_worse(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=l2")
    proposed = wanted(here, 0.2)
    few, many = (screened(here, dense(here), proposed, tries) for tries in (4, 24))
    assert many.chosen <= few.chosen <= few.proposed == many.proposed
    others = [screened(here, dense(here), proposed, 24, seed).kept.tolist() for seed in (3, 4, 5)]
    assert len({tuple(kept) for kept in others}) > 1


def test_candidates_are_paid_for_by_a_share_of_the_steps() -> None:
    assert candidates(0.08, 32, 2) == 1
    assert candidates(0.08, 200, 2) == 12
    assert candidates(1.0, 2, 1) == 3
    assert candidates(0.08, 3, 2) == 0


def test_a_child_begins_where_its_parent_s_walk_ended(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=l2", *MANY[:2], "phases.finetune.unit_steps=12", *MANY[2:])
    for number, ratio in enumerate((0.6, 0.3)):
        assert here.evaluator(here.propose(ratio), number, silent).parent == (None if number == 0 else 0)
    mother, child = here.evaluator.finished()
    document = read_plan(here.evaluator.models / "0")
    assert document["screening"]["tried"] > 4
    assert list(mother.octaves) == document["screening"]["octaves"]
    assert any(mother.octaves)
    plan = document["plan"]["stages"][0]
    assert plan["rule"] == "quantile"
    kept = here.problem.structure.counts(mother.keep)
    assert plan["thresholds"] == thresholds.quantiles(here.problem.structure, kept)
    assert len(child.octaves) == len(mother.octaves)


def test_a_parent_needs_half_of_what_other_groups_make_up_for() -> None:
    from tests.search.test_finished import finished

    plans = [finished(0, 100, 8, 8), finished(1, 60, 9, 4), finished(2, 30, 9, 3)]
    for want, macs, parent in (([6, 6], 50, 1), ([6, 6], 70, 0), ([6, 9], 40, 0), ([6, 9], 110, None), ([2, 2], 20, 2)):
        found = nearest_parent(plans, np.array(want, dtype=float), 2, macs)
        assert (None if found is None else found.number) == parent
    assert nearest_parent(plans, np.array([6.0, 6.0])) == plans[0]


def test_without_screening_the_plan_is_what_was_proposed(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=l2", *QUICK)
    proposal = here.propose(0.3)
    measured = here.evaluator(proposal, 0, silent)
    document = read_plan(here.evaluator.models / "0")
    assert document["screening"] is None
    assert document["plan"]["stages"][0]["thresholds"] == dict(proposal.cuts[0].thresholds)
    assert list(measured.kept.values()) == here.evaluator.wanted(proposal).kept.tolist()


PRUNE_UNITS = sorted(
    path.stem
    for path in (CONF / "method").glob("*.yaml")
    if "granularity: weight" not in path.read_text()
    and "granularity: pattern" not in path.read_text().split("then:")[0]
    and "granularity: block" not in path.read_text()
    and path.stem not in ("search", "int8")
)


CHAINS = {
    "l2": [],
    "hybrid": [],
    "soft_filter": [],
    "depth": ["model.blocks=2"],
    "activation_topk": [],
    "random": [],
    "search": ["method.among=[{name: l1, criterion: {_target_: lightning_modules.pruning.criteria.Magnitude, p: 1.0}},"
               "{name: r, criterion: {_target_: lightning_modules.pruning.criteria.Random}}]"],
}  # fmt: skip


@pytest.mark.parametrize(
    "method", [name if name in CHAINS else pytest.param(name, marks=pytest.mark.slow) for name in PRUNE_UNITS]
)
def test_every_method_that_removes_units_is_screened(home: Path, tmp_path: Path, method: str) -> None:
    here = bench(home, tmp_path, f"method={method}", *MANY)
    extra = {"activation__level": 0.3} if here.problem.settings.method.activation else {}
    if not isinstance(next(iter(here.methods.values())).stages[0].pruner, UnitPruner):
        pytest.skip("it prunes single weights")
    measured = here.evaluator(here.propose(0.4, **extra), 0, silent)
    assert measured.state == "completed"
    found = read_plan(here.evaluator.models / "0")["screening"]
    assert found["tried"] >= 3
    assert found["chosen"] <= found["proposed"]


@pytest.mark.parametrize("method", CHAINS)
def test_a_screened_chain_is_replayed_bit_for_bit(home: Path, tmp_path: Path, method: str) -> None:
    here = bench(home, tmp_path, f"method={method}", *MANY, *CHAINS[method])
    extra: dict[str, Any] = {"activation__level": 0.3} if here.problem.settings.method.activation else {}
    for number, ratio in enumerate((0.6, 0.35, 0.2)):
        named = {**extra, "method": ("l1", "r")[number % 2]} if method == "search" else extra
        measured = here.evaluator(here.propose(ratio, **named), number, silent)
        assert (measured.state, measured.parent) == ("completed", number - 1 if number else None)
    last = shutil.move(here.evaluator.models / "2", tmp_path / "kept")
    shutil.rmtree(here.evaluator.models)
    assert read_plan(Path(last))["screening"]["tried"] >= 3
    assert orchestrator.replay(here.problem.settings, last).identical
