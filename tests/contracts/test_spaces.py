"""What every space in conf/space must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml

from lightning_modules.errors import ConfigError
from lightning_modules.models import SmallResNet, SmallViT
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.plan import Plan
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.weights import Weight, weight_structure
from lightning_modules.recipe import Recipe
from orchestrator.search.space import Allocation, Hierarchical, PerGroup, SearchContext, Uniform
from orchestrator.search.space.allocated import stage_names
from orchestrator.search.space.allocation import Sensitivity
from tests.facts import hold
from tests.structures import discovered, small_resnet

SPACES = sorted((Path(__file__).parents[2] / "conf" / "space").glob("*.yaml"))
MATCH = {"patterns": ["patterns"], "hybrid": ["hybrid", "hybrid of patterns"]}
PLAIN = ["units", "blocks", "shallow", "weights", "global", "rounded", "previewed"]
PAIRS = [(path, name) for path in SPACES for name in MATCH.get(path.stem, PLAIN)]


def context_of(structure: Structure) -> SearchContext:
    cost = Cost(structure)
    scores = np.random.default_rng(0).gamma(9.0, size=structure.n_units)
    loss = np.linspace(0.05, 1.0, len(structure.groups))
    dense = cost.macs(structure.sizes)
    return SearchContext(
        structure,
        cost.macs,
        dense,
        "quantile",
        scores,
        Sensitivity(loss),
        largest_ratio=0.9,
    )


def on_weights(how: Weight) -> SearchContext:
    units = small_resnet(blocks=2)
    structure = weight_structure(units, units.full(), SmallResNet(10, blocks=2), how)
    return replace(context_of(structure), weight=how)


def previewed(context: SearchContext) -> SearchContext:
    """With two allocations of a preview, of which the smaller one is not even."""
    sizes = context.structure.sizes
    small = sizes // 2
    small[0] = 1
    return replace(context, allocations=np.array([sizes // 2, small]))


@cache
def context_named(name: str) -> SearchContext:
    makers: dict[str, Callable[[], SearchContext]] = {
        "units": lambda: context_of(small_resnet(blocks=2)),
        "blocks": lambda: context_of(small_resnet(blocks=2, depth=True)),
        "weights": lambda: on_weights(Weight()),
        "patterns": lambda: on_weights(Weight("pattern", (1, 4))),
        "global": lambda: replace(
            context_named("units"),
            pools=[list(range(len(context_named("units").structure.groups)))],
        ),
        "shallow": lambda: replace(context_named("blocks"), depth=0.8),
        "previewed": lambda: previewed(context_named("global")),
        "rounded": lambda: replace(context_named("units"), round_to=4),
        "hybrid": lambda: replace(context_named("units"), then=context_named("weights")),
        "hybrid of patterns": lambda: replace(
            context_named("units"), then=context_named("patterns")
        ),
    }
    return makers[name]()


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0].stem} on {pair[1]}")
def pair(request: pytest.FixtureRequest) -> tuple[Any, SearchContext]:
    path, name = request.param
    return Recipe.from_json(yaml.safe_load(path.read_text())).build(), context_named(name)


def kept(context: SearchContext, plan: Plan) -> Any:
    """Units of each group, or weights of each tensor, by the plan."""
    groups = context.structure.groups
    if context.weight is None:
        return plan.counts(context.structure)
    shares = [plan.density.get(group.name, 1.0) for group in groups]
    if context.weight.kind == "pattern":
        return np.array([int(share == 1.0) for share in shares])
    return np.rint(np.array(shares) * context.structure.sizes).astype(np.int64)


def ratio(context: SearchContext, plan: Plan) -> float:
    """What the plan leaves of the cost."""
    if context.then is None:
        return context.macs(kept(context, plan)) / context.dense_macs
    left = context.macs(kept(context, plan)) / context.dense_macs
    return left * next(iter(plan.density.values()), 1.0)


def test_a_space_keeps_the_contract_in_every_context_it_is_for(
    pair: tuple[Any, SearchContext],
) -> None:
    facts = [
        every_rung_of_the_chain_lies_within_the_distributions,
        the_chain_meets_its_targets_and_is_nested,
        what_optuna_proposes_becomes_a_plan_for_every_group,
        the_same_parameters_give_the_same_plan,
    ]
    hold(facts, *pair)


def every_rung_of_the_chain_lies_within_the_distributions(
    space: Any, context: SearchContext
) -> None:
    distributions = space.distributions(context)
    for target in (0.7, 0.3, 0.1):
        params = space.chain(context, target)
        assert set(params) == set(distributions)
        for name, value in params.items():
            assert distributions[name]._contains(distributions[name].to_internal_repr(value)), (
                name,
                value,
            )


def the_chain_meets_its_targets_and_is_nested(space: Any, context: SearchContext) -> None:
    coarse = (
        context.structure.groups[0].kind == "pattern"
        or context.round_to > 1
        or context.then is not None
    )
    before = context.structure.sizes
    for target in (0.7, 0.4):
        plan = space.propose(context, space.chain(context, target))
        found = kept(context, plan)
        assert (0.5 if coarse else 0.8) * target < ratio(context, plan) <= target + 0.02
        assert (found <= before).all()
        before = found


def what_optuna_proposes_becomes_a_plan_for_every_group(space: Any, context: SearchContext) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(10):
        plan = space.propose(context, study.ask(space.distributions(context)).params)
        assert len(plan.asked) == (1 if context.then is None else 2)
        assert set(plan.asked[0].levels) == {group.name for group in context.structure.groups}
        assert (kept(context, plan) >= context.structure.least).all()
        assert plan.timing.total >= 1


def the_same_parameters_give_the_same_plan(space: Any, context: SearchContext) -> None:
    params = space.chain(context, 0.4)
    assert space.propose(context, params) == space.propose(context, dict(params))


@pytest.mark.parametrize("space", [Uniform(high=2.0), PerGroup(high=2.0)])
def test_multiples_of_the_mean_meet_the_chain_s_targets_too(space: Any) -> None:
    rough = replace(context_named("units"), rule="mean")
    for target in (0.7, 0.3):
        plan = space.propose(rough, space.chain(rough, target))
        assert 0.8 * target < ratio(rough, plan) <= target


def test_a_global_scope_has_one_threshold_and_ranks_all_units_together() -> None:
    context = context_named("global")
    names = [name for name in PerGroup().distributions(context) if name.startswith("threshold.")]
    assert len(names) == 1
    plan = PerGroup().propose(context, {**PerGroup().chain(context, 0.5), names[0]: 0.5})
    found = kept(context, plan)
    assert abs(int(found.sum()) - context.structure.n_units / 2) <= len(context.structure.groups)
    worst_kept = [
        np.sort(context.scores[g.units])[-n]
        for g, n in zip(context.structure.groups, found, strict=True)
    ]
    best_gone = [
        np.sort(context.scores[g.units])[-n - 1]
        for g, n in zip(context.structure.groups, found, strict=True)
    ]
    several = found > 1
    assert np.array(worst_kept)[several].min() >= np.array(best_gone).max()


def test_allocations_of_a_preview_stand_in_for_equal_ratios_and_for_a_ranking() -> None:
    context, space = context_named("previewed"), Allocation()
    allocations = context.allocations
    assert allocations is not None
    for wanted in allocations:
        target = context.macs(wanted) / context.dense_macs
        plan = space.propose(context, space.chain(context, target + 1e-9))
        assert (kept(context, plan) == wanted).all()


def test_whole_blocks_go_in_the_order_of_their_scores_and_their_cost_with_them() -> None:
    context, space = context_named("blocks"), Allocation(offset=0.0)
    params = {**space.chain(context, 0.9), "flops_ratio": 1.0}
    before = ratio(context, space.propose(context, params))
    for dropped in range(1, len(context.blocks) + 1):
        found = kept(context, space.propose(context, {**params, "blocks": dropped}))
        gone = {i for i in context.blocks if found[i] == 0}
        assert gone == set(context.blocks[:dropped])
        now = context.macs(found) / context.dense_macs
        assert now < before
        before = now


@pytest.mark.parametrize("space", [Allocation(), Uniform(), PerGroup()])
def test_a_chain_drops_more_blocks_the_narrower_it_gets(space: Any) -> None:
    context = context_named("shallow")
    assert len(context.blocks) == 4
    dropped = {0.7: 1, 0.4: 2, 0.2: 3, 0.06: 4}  # 4 x (1 - target^0.8), the nearest whole number
    for target, expected in dropped.items():
        plan = space.propose(context, space.chain(context, target))
        assert {i for i in context.blocks if kept(context, plan)[i] == 0} == set(
            context.blocks[:expected]
        )
        assert ratio(context, plan) <= target
        whole = replace(context, depth=0.0)
        assert space.chain(whole, target)["blocks"] == 0


def test_blocks_stay_where_the_rest_would_fall_short_of_the_target() -> None:
    structure = discovered(
        "small vit", lambda: (SmallViT(10), (torch.zeros(1, 1, 8, 8),)), depth=True
    )
    context = replace(context_of(structure), depth=1.0)
    none_left = np.concatenate(
        [structure.sizes[: context.widths], context.without_blocks(len(context.blocks))]
    )
    least = context.macs(none_left) / context.dense_macs
    assert len(context.blocks) == 2
    assert least < 0.05
    for target in (
        0.4,
        0.2,
        0.1,
        0.05,
    ):  # without a block it would be the same tiny model each time
        found = ratio(context, Allocation().propose(context, Allocation().chain(context, target)))
        assert 0.5 * target < found <= target


def test_rounded_counts_are_multiples_and_still_meet_the_target() -> None:
    context, space = context_named("rounded"), Allocation(offset=0.0)
    plan = space.propose(context, space.chain(context, 0.4))
    found = kept(context, plan)
    assert ((found % 4 == 0) | (found == context.structure.sizes)).all()
    assert ratio(context, plan) <= 0.4


def test_a_stage_s_offset_moves_all_its_groups() -> None:
    context, space = context_named("units"), Hierarchical(offset=0.0)
    names = stage_names([group.name for group in context.structure.groups])
    params = {**space.chain(context, 0.4), f"stage.{names[-1]}": -1.0}
    plain = kept(context, space.propose(context, space.chain(context, 0.4)))
    moved = kept(context, space.propose(context, params))
    mine = np.array([name == names[-1] for name in names])
    assert (moved[mine] < plain[mine]).all()
    assert (moved[~mine] >= plain[~mine]).all()


@pytest.mark.parametrize(
    ("groups", "stages"),
    [
        (
            ["conv1", "layer1.0.a", "layer1.1.a", "layer2.0.a", "layer2.1.a"],
            ["conv1", "layer1", "layer1", "layer2", "layer2"],
        ),
        (
            ["stages.0.a", "stages.0.b", "stages.1.a", "stages.1.b"],
            ["stages.0", "stages.0", "stages.1", "stages.1"],
        ),
        (["features.0", "features.3", "features.7"], ["features.0", "features.3", "features.7"]),
    ],
)
def test_stages_are_what_names_share(groups: list[str], stages: list[str]) -> None:
    assert stage_names(groups) == stages


def test_spaces_that_do_not_fit_the_method_say_what_to_take() -> None:
    spaces = {
        path.stem: Recipe.from_json(yaml.safe_load(path.read_text())).build() for path in SPACES
    }
    for name, found, remedy in (
        ("per_group", "patterns", "space=patterns"),
        ("patterns", "units", "space=allocation"),
        ("hybrid", "units", "method=hybrid"),
    ):
        with pytest.raises(ConfigError, match=remedy):
            spaces[name].distributions(context_named(found))
