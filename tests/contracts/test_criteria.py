"""What every criterion in conf/method must do; a new YAML is picked up by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from criteria_models import MAKERS, Case, half, kill, make, permute, structure_of, within_groups
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.criteria import Calibration
from lightning_modules.pruning.removal import remove
from lightning_modules.recipe import Recipe


def criterion_of(recipe: Mapping[str, Any]) -> Any:
    return Recipe.from_json(recipe).build()


def recipes(*granularities: str) -> dict[str, dict[str, Any]]:
    """Criteria of the YAMLs, each once, by the shortest name; those that choose among other methods have none."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"), key=lambda p: (len(p.stem), p)):
        data = yaml.safe_load(path.read_text())
        data = data.get("method", data)  # a YAML that sets more than the method has it one level down
        fits = not data.get("among") and data.get("granularity", "unit") in granularities
        if fits and data.get("criterion") and criterion_of(data["criterion"]) not in map(criterion_of, found.values()):
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
    "Ablation": "the loss may fall when others go; with slices it shares the score of its neighbours",
}
DEAD_WEIGHT_MAY_STAY = {
    "Random": "looks at nothing",
    "Gradient": "a zero weight may have the largest gradient: regrowth lives on that",
    "Grasp": "scores of either sign",
    "Movement": "scores of either sign, and a zero weight moves away from zero",
}


@pytest.fixture(params=sorted(MAKERS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(make(request.param), structure_of(request.param))


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=WEIGHTS)
def weighing(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(method: str) -> Any:
    return criterion_of(METHODS[method])


def weigh(weighing: str) -> Any:
    return criterion_of(WEIGHTS[weighing])


def kind(criterion: Any) -> str:
    return type(criterion).__name__


def calibration(seed: int = 0, count: int = 3, dtype: torch.dtype = torch.float64) -> Calibration:
    generator = torch.Generator().manual_seed(5)
    batches = [
        [torch.randn(6, 1, 8, 8, generator=generator).to(dtype), torch.randint(10, (6,), generator=generator)]
        for _ in range(count)
    ]
    return Calibration(batches, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), seed)


def names_of(case: Case) -> list[str]:
    return [name for name, parameter in case.model.named_parameters() if parameter.dim() >= 2]


def assert_same(left: Any, right: Any) -> None:
    left, right = np.asarray(left), np.asarray(right)
    np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7 * max(float(np.abs(right).max()), 1e-12))


def test_every_kind_of_coupling_is_there() -> None:
    kinds = {group.kind for name in MAKERS for group in structure_of(name).groups}
    assert {"channel", "neuron", "head", "head_dim", "conv_group", "recurrent", "block"} <= kinds
    assert len(METHODS) >= 20


def test_scores_are_one_finite_number_per_unit(method: str, case: Case) -> None:
    scores = build(method)(case.model.float(), case.structure, calibration(dtype=torch.float32))
    assert scores.shape == (case.structure.n_units,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    # a group that is 0 throughout would be pruned blindly
    assert all(scores[group.units].any() == (group.kind != "block") for group in case.structure.groups)


def test_scores_are_the_same_twice_and_leave_the_model_alone(method: str, case: Case) -> None:
    assert_untouched(case, lambda: build(method)(case.model, case.structure, calibration()))


def test_weights_are_the_same_twice_and_leave_the_model_alone(weighing: str, case: Case) -> None:
    def flat() -> np.ndarray:
        found = weigh(weighing).weights(case.model, names_of(case), calibration())
        return np.concatenate([value.flatten().numpy() for value in found.values()])

    assert_untouched(case, flat)


def assert_untouched(case: Case, score: Callable[[], np.ndarray]) -> None:
    """In a model that is partly in train mode, with gradients of its own and a draw of random numbers between."""
    model = case.model.train()
    next(iter(model.children())).eval()
    kept = list(model.parameters())[-1]
    kept.grad = torch.ones_like(kept)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    switches = (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled)
    random = torch.get_rng_state()
    first = score()
    assert torch.equal(torch.get_rng_state(), random)
    torch.randn(3)
    with torch.no_grad():
        second = score()
    assert (first == second).all()
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == tensors
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not kept)
    now = (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled)
    assert now == switches


def test_scores_do_not_depend_on_the_order_of_batches(method: str, case: Case) -> None:
    forward = calibration()
    backward = replace(forward, batches=forward.batches[::-1])
    assert_same(build(method)(case.model, case.structure, backward), build(method)(case.model, case.structure, forward))


def test_weights_do_not_depend_on_the_order_of_batches(weighing: str, case: Case) -> None:
    forward = calibration()
    backward = replace(forward, batches=forward.batches[::-1])
    first = weigh(weighing).weights(case.model, names_of(case), forward)
    second = weigh(weighing).weights(case.model, names_of(case), backward)
    for name in first:
        assert_same(second[name], first[name])


def test_all_batches_count_where_data_counts(method: str, case: Case) -> None:
    whole = calibration(count=3)
    other = replace(whole, batches=[*whole.batches[:2], calibration(count=4).batches[3]])
    first, second = (build(method)(case.model, case.structure, c) for c in (whole, other))
    assert (first == second).all() == (kind(build(method)) in DATA_FREE)


def test_a_dead_unit_comes_last(method: str, case: Case) -> None:
    if kind(build(method)) in DEAD_MAY_STAY:
        pytest.skip(DEAD_MAY_STAY[kind(build(method))])
    kill(case)
    scores = build(method)(case.model, case.structure, calibration())
    for group in case.structure.groups:
        if not group.members:
            continue
        if kind(build(method)) == "Gradient" and not group.mask_exact:
            continue  # a reduction over the units, such as LayerNorm's mean, still sends gradients to a dead one
        assert scores[group.start + 1] <= scores[group.units].min() + 1e-12, group.name


def test_a_zero_weight_comes_last(weighing: str, case: Case) -> None:
    if kind(weigh(weighing)) in DEAD_WEIGHT_MAY_STAY:
        pytest.skip(DEAD_WEIGHT_MAY_STAY[kind(weigh(weighing))])
    with torch.no_grad():
        for name in names_of(case):
            case.model.get_parameter(name).flatten()[3] = 0.0
    for score in weigh(weighing).weights(case.model, names_of(case), calibration()).values():
        assert score.flatten()[3] == score.min() == 0.0


def test_scores_follow_the_units_when_they_are_permuted(method: str, case: Case) -> None:
    if kind(build(method)) in BLIND:
        pytest.skip(f"{method} does not look at the weights")
    before = build(method)(case.model, case.structure, calibration())
    order = within_groups(case.structure)
    permute(case, order)
    assert_same(build(method)(case.model, case.structure, calibration()), before[order])


def test_weights_follow_the_units_when_they_are_permuted(weighing: str, case: Case) -> None:
    if kind(weigh(weighing)) in BLIND:
        pytest.skip(f"{weighing} does not look at the weights")
    before = weigh(weighing).weights(case.model, names_of(case), calibration())
    did = permute(case, within_groups(case.structure))
    after = weigh(weighing).weights(case.model, names_of(case), calibration())
    for name in before:
        assert_same(after[name], did[name](before[name]))


def test_a_pruned_model_is_scored_in_dense_ids(method: str, case: Case) -> None:
    keep = half(case.structure)
    structure = case.structure.restrict(keep)
    scores = build(method)(remove(case.model, case.structure, keep), structure, calibration())
    assert scores.shape == keep.shape
    assert np.isfinite(scores).all()
    assert not scores[~keep].any()
    # a unit left alone in its group has no distance to others, and what went with a block has no members
    several = [group for group in structure.groups if group.members and keep[group.units].sum() > 1]
    assert all(scores[group.units].any() for group in several)


def test_weights_are_one_finite_number_each(weighing: str, case: Case) -> None:
    names = names_of(case)
    found = weigh(weighing).weights(case.model.float(), names, calibration(dtype=torch.float32))
    assert list(found) == names
    for name, score in found.items():
        weight = case.model.get_parameter(name)
        assert (score.shape, score.dtype, score.device) == (weight.shape, torch.float32, weight.device)
        assert score.isfinite().all()
        assert not score.requires_grad


def test_what_is_not_a_number_is_not_hidden(method: str, case: Case) -> None:
    if kind(build(method)) in BLIND:
        pytest.skip(f"{method} does not look at the weights")
    group = case.structure.groups[0]
    with torch.no_grad():
        for member in group.members:
            if member.role == "out" and case.model.state_dict()[member.tensor].is_floating_point():
                case.model.state_dict()[member.tensor].fill_(float("nan"))
    assert np.isnan(build(method)(case.model, case.structure, calibration())[group.units]).any()


@pytest.mark.parametrize("method", [name for name, recipe in METHODS.items() if "combine" in recipe])
def test_an_unknown_way_to_combine_is_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=r"combine must be one of .*'middle'"):
        criterion_of({**METHODS[method], "combine": "middle"})
