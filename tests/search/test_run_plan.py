"""Plans carried out on a real, small network: what every kind of method has to leave behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.phases.carried import Carried
from lightning_modules.pruning.weights import densities, effective_macs
from orchestrator.search.lab.facts import Facts
from orchestrator.search.plans.finished import read_plan
from orchestrator.search.trials.methods import check_method
from tests.search.problems import bench, lab_of, settings_of, silent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the dense baselines of this module stand: each is trained once."""
    return tmp_path_factory.mktemp("home")


def ratio_of(facts: Facts, model: nn.Module) -> float:
    """Parameters of a model against the dense one's."""
    return sum(p.numel() for p in model.parameters()) / facts.dense_params


@pytest.mark.parametrize(
    "method",
    [
        "weight_l1",
        "rigl",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("set", "surgery", "block")),
    ],
)
def test_the_sparsity_of_every_tensor_is_the_plan_s(
    home: Path, tmp_path: Path, method: str
) -> None:
    here = bench(home, tmp_path, f"method={method}")
    plan = here.propose(0.2, schedule__steps=2)
    measured, model = here.run(plan)
    wanted = plan.density
    names = here.facts.weight_names
    found = densities(model, names)
    for name in names:
        # blocks at the edge are smaller; a weight that came back where no gradient goes is still
        # zero
        numel = model.get_parameter(name).numel()
        slack = {"block": 16.0, "rigl": 4 + 0.001 * numel, "set": 4 + 0.001 * numel}.get(
            method, 1.0
        )
        assert abs(found[name] - wanted.get(name, 1.0)) * numel <= slack
    assert measured.ratios["flops"] == 1.0
    assert measured.ratios["effective_flops"] == pytest.approx(0.2, abs=0.01)
    full = here.facts.structure.full()
    assert measured.costs["effective_flops"] == 2 * effective_macs(
        here.facts.structure, full, found
    )
    child, sparser = here.run(here.propose(0.1), 1)
    assert child.parent == 0
    if method != "block":  # a block may return within its tensor when means change
        zero = [
            name
            for name in names
            if ((model.get_parameter(name) == 0) & (sparser.get_parameter(name) != 0)).any()
        ]
        assert zero == [] or method in ("rigl", "set", "surgery")


def test_n_of_m_in_every_tensor_that_has_the_pattern(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=nm_2_4")
    names = [group.name for group in here.context.structure.groups]
    plan = here.propose(0.1, **{f"pattern.{name}": name != names[0] for name in names})
    _, model = here.run(plan)
    for name in names:
        weight = model.get_parameter(name).movedim(1, -1)
        kept = (weight.reshape(-1, 4) != 0).sum(1)
        assert (kept == (4 if name == names[0] else 2)).all()


def test_a_hybrid_plan_removes_units_and_then_weights_of_what_is_left(
    home: Path, tmp_path: Path
) -> None:
    here = bench(home, tmp_path, "method=hybrid")
    measured, model = here.run(here.propose(0.3, then__sparsity=0.5))
    assert ratio_of(here.facts, model) < 0.8
    document = read_plan(here.store.folder / "0")
    (method,) = document["lineage"]["methods"].values()
    assert (method["granularity"], method["then"]["granularity"]) == ("unit", "weight")
    assert document["plan"]["kept"]
    assert document["plan"]["density"]
    left = sum(model.get_parameter(name).numel() for name in here.facts.weight_names)
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in here.facts.weight_names)
    assert zeros / left == pytest.approx(0.5, abs=0.02)
    assert measured.ratios["effective_flops"] < measured.ratios["flops"] < 1.0
    child, smaller = here.run(here.propose(0.1), 1)
    assert child.parent == 0
    assert ratio_of(here.facts, smaller) < ratio_of(here.facts, model)


def test_soft_weights_end_with_the_mask_they_were_trained_under(home: Path, tmp_path: Path) -> None:
    """What is chosen anew at the last step has drifted out of sight: the network would not know
    it.
    """
    soft = bench(
        home, tmp_path / "soft", "method=weight_l1", "method.soft=true", "space.shapes=[one_shot]"
    )
    hard = bench(home, tmp_path / "hard", "method=weight_l1", "space.shapes=[one_shot]")
    found = [
        here.run(here.propose(0.1, schedule__steps=1, finetune__rounds=2)) for here in (soft, hard)
    ]
    masks = [
        [model.get_parameter(name) != 0 for name in soft.facts.weight_names] for _, model in found
    ]
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))
    quality = [measured.metrics["accuracy"] for measured, _ in found]
    assert quality[0] > quality[1] - 0.1


@pytest.mark.parametrize(
    "shape",
    ["cubic", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cyclic", "recovering"))],
)
def test_soft_units_end_as_small_as_hard_ones(home: Path, tmp_path: Path, shape: str) -> None:
    here = bench(
        home, tmp_path, "method=soft_filter", f"space.shapes=[{shape}]", "space.steps=[3,3]"
    )
    plan = here.propose(0.4)
    measured, model = here.run(plan)
    assert measured.kept == plan.kept
    assert ratio_of(here.facts, model) == pytest.approx(measured.ratios["params"])


@pytest.mark.slow
@pytest.mark.family
def test_the_dense_model_is_as_it_was_bit_for_bit(home: Path, tmp_path: Path) -> None:
    for method in ("soft_filter", "surgery", "group_lasso", "hybrid", "activation_topk"):
        here = bench(home, tmp_path / method, f"method={method}")
        before = {name: value.clone() for name, value in here.facts.model.state_dict().items()}
        here.run(here.propose(0.3))
        assert all(
            torch.equal(value, before[name])
            for name, value in here.facts.model.state_dict().items()
        )
        again = lab_of(home, f"method={method}").facts.model.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in again.items())


@pytest.mark.slow
def test_whole_blocks_go_and_the_rest_still_fits(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=depth", "model.blocks=2")
    measured, model = here.run(here.propose(0.5, blocks=2))
    assert sum(isinstance(module, nn.Identity) for module in model.stages.modules()) >= 2  # type: ignore[union-attr]
    assert ratio_of(here.facts, model) == pytest.approx(measured.ratios["params"])
    child, _ = here.run(here.propose(0.2, blocks=3), 1)
    assert child.parent == 0


@pytest.mark.slow
@pytest.mark.family
def test_groups_of_one_shape_are_ranked_together_and_blocks_stay_apart(
    home: Path, tmp_path: Path
) -> None:
    isomorphic = ["method.scope=isomorphic", "space=per_group", "model.blocks=3"]
    here = bench(home, tmp_path / "units", "method=depth", *isomorphic)
    kinds = [
        {here.facts.structure.groups[i].kind for i in pool} for pool in here.context.pools or ()
    ]
    assert max(len(pool) for pool in here.context.pools or ()) >= 2
    assert all(
        len(pool) == 1
        for pool, kind in zip(here.context.pools or (), kinds, strict=True)
        if "block" in kind
    )
    assert here.run(here.propose(0.5, blocks=1))[0].state == "completed"
    single = bench(home, tmp_path / "weights", "method=weight_l1", *isomorphic)
    for pool in single.context.pools or ():
        names = [single.context.structure.groups[i].name for i in pool]
        assert len({single.facts.model.get_parameter(name).shape for name in names}) == 1


def test_rounded_widths_are_reported_beside_what_was_asked(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=l2", "method.round_to=4", "space=uniform")
    measured, _ = here.run(here.propose(0.5, threshold=0.4))
    asked = measured.plan["asked"][0]["levels"]  # type: ignore[index]
    for group in here.facts.structure.groups:
        kept = measured.kept[group.name]
        assert kept % 4 == 0
        assert group.size - kept <= asked[group.name] * group.size + 1e-9


def test_activations_are_pruned_at_run_time_and_counted(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, "method=activation_topk", "method.activation.levels=[0.2,0.9]")
    few, _ = here.run(here.propose(0.7, activation__level=0.2), 0)
    many, _ = here.run(here.propose(0.7, activation__level=0.9), 1)
    assert few.ratios["flops"] == many.ratios["flops"]
    assert few.ratios["effective_flops"] < 0.5 * few.ratios["flops"]
    assert few.ratios["effective_flops"] < many.ratios["effective_flops"]


@pytest.mark.slow
def test_rewound_and_fresh_weights(home: Path, tmp_path: Path) -> None:
    frozen = [
        "phases.finetune.optimizer={_target_: torch.optim.SGD, lr: 1e-12}",
        "phases.finetune.recalibration_batches=1",
    ]
    here = bench(
        home,
        tmp_path / "a",
        "phases.train.rewind_epoch=1",
        "phases.finetune.begin=rewound",
        *frozen,
    )
    assert here.facts.rewound is not None
    _, model = here.run(here.propose(0.5))
    keep = here.store.finished()[0].keep
    row = here.facts.structure.table["fc.weight", 1]
    expected = here.facts.rewound.get_parameter("fc.weight")[:, torch.from_numpy(keep[row])]
    torch.testing.assert_close(model.get_parameter("fc.weight"), expected)
    assert not torch.allclose(
        expected, here.facts.model.get_parameter("fc.weight")[:, torch.from_numpy(keep[row])]
    )
    fresh = bench(home, tmp_path / "b", "phases.finetune.begin=fresh", *frozen)
    weights = [fresh.run(fresh.propose(0.5, schedule__steps=1), number)[1] for number in (0, 1)]
    for parameter in ("fc.weight", "conv1.weight"):
        assert not torch.allclose(
            weights[0].get_parameter(parameter), weights[1].get_parameter(parameter)
        )
    with pytest.raises(ConfigError, match=r"begin=rewound needs phases.train.rewind_epoch"):
        settings_of(home, "phases.finetune.begin=rewound")


GUARD = "phases.finetune.guard={tolerance: 0.03, action: %s}"


def test_a_guard_stops_steps_back_or_slows_down(home: Path, tmp_path: Path) -> None:
    steps = {"schedule__steps": 3, "schedule__shape": "linear"}
    hurt = [
        "space.steps=[1,3]",
        "phases.finetune.recalibration_batches=0",
        "phases.finetune.round_steps=2",
    ]
    wide = bench(home, tmp_path / "none", *hurt)
    free, _ = wide.run(wide.propose(0.05, **steps))
    assert free.state == "completed"
    floor = wide.facts.dense_metrics["accuracy"] - 0.03
    assert free.metrics["accuracy"] < floor
    for action in ("stop", "step_back", "slow_down"):
        here = bench(home, tmp_path / action, GUARD % action, *hurt)
        found = here.evaluator(here.propose(0.05, **steps), 0, silent)
        if found.state == "stopped":
            assert found.reason.startswith("guard: accuracy")
            assert not (here.store.folder / "0").exists()
        else:
            assert action != "stop"
            assert found.metrics["accuracy"] >= floor
            assert found.ratios["flops"] > free.ratios["flops"]


def test_a_guard_that_is_not_touched_changes_nothing(home: Path, tmp_path: Path) -> None:
    loose = "phases.finetune.guard={tolerance: 1.0, action: slow_down}"
    results = []
    for place, extra in enumerate(([], [loose])):
        here = bench(home, tmp_path / str(place), *extra)
        results.append(here.run(here.propose(0.4, schedule__steps=2))[1].state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_momentum_goes_through_a_pruning_step(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for place in ("carried", "forgotten"):
        if place == "forgotten":
            monkeypatch.setattr(
                "orchestrator.search.trials.run_plan.Carried", lambda state: Carried()
            )
        here = bench(home, tmp_path / place)
        found.append(here.run(here.propose(0.4, schedule__steps=2))[1].state_dict())
    assert any(not torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert all(value.isfinite().all() for value in found[0].values())


def test_a_window_of_pruning_begins_late_and_ends_early(home: Path, tmp_path: Path) -> None:
    here = bench(
        home, tmp_path, "space.start=[0.0,0.5]", "space.end=[0.6,1.0]", "space.steps=[1,4]"
    )
    plan = here.propose(
        0.5, schedule__steps=4, schedule__start=0.25, schedule__end=0.75, finetune__rounds=1
    )
    measured, _ = here.run(plan)
    assert plan.timing.moments() == [1, 1, 2, 2]
    assert measured.trained_rounds == 4
    assert [rung for rung, _ in measured.rungs] == [1, 2]


def test_methods_take_turns_in_the_chain_and_are_recorded(home: Path, tmp_path: Path) -> None:
    names = ["l1", "random"]
    first = (
        "{name: l1, criterion: {_target_: lightning_modules.pruning.criteria.Magnitude, p: 1.0}}"
    )
    second = "{name: random, criterion: {_target_: lightning_modules.pruning.criteria.Random}}"
    here = bench(home, tmp_path, "method=search", f"method.among=[{first}, {second}]")
    for number, name in enumerate(names):
        measured, _ = here.run(here.propose(0.5 - 0.2 * number, method=name), number)
        assert measured.method == name
    assert here.space.distributions(here.context)["method"].choices == tuple(names)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_quantised_model_is_measured_as_it_is(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    here = bench(home, tmp_path, "method=int8", "method.int8=[false,true]")
    plain, _ = here.run(here.propose(0.5, int8=False), 0)
    small, model = here.run(here.propose(0.45, int8=True), 1)
    path = here.store.folder / "1" / "model.int8.onnx"
    assert small.costs["size_mb"] == path.stat().st_size / 1e6
    assert not (here.store.folder / "0" / "model.int8.onnx").exists()
    from orchestrator.export.onnx import OnnxModel

    assert here.lab.validate(OnnxModel(path))["accuracy"] == small.metrics["accuracy"]
    assert abs(here.lab.validate(model)["accuracy"] - small.metrics["accuracy"]) < 0.05
    assert plain.costs["size_mb"] > 0.0


def test_combinations_that_cannot_be_are_refused_with_a_remedy(home: Path) -> None:
    for overrides, message in (
        (["method=nm_2_4", "method.rule=mean"], "no threshold"),
        (["method=nm_2_4", "method.shape=[4,4]"], "N < M"),
        (["method=block", "method.shape=null"], "`shape` is for"),
        (
            ["method=l2", "method.regrowth={_target_: lightning_modules.pruning.regrowth.RigL}"],
            "single weights",
        ),
        (["method=weight_l1", "method.round_to=8"], "no width"),
        (["method=weight_l1", "method.depth=true"], "for units"),
        (["method=l2", "method.int8=[]"], "int8"),
        (["method=weight_l1", "objectives=quality_flops"], "quality_effective_flops"),
        (["method=weight_l1", "objectives.costs=[latency_ms]"], "quality_effective_flops"),
        (
            ["method=slimming", "method.granularity=weight", "objectives=quality_effective_flops"],
            "prunes none",
        ),
        (["method=activation_topk", "method.activation.levels=[0.9,0.2]"], "least, most"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings_of(home, *overrides)
    for overrides, message in (
        (["method=nm_2_4", "space=allocation"], "space=patterns"),
        (["method=l2", "space=patterns"], "space=allocation"),
        (["method=l2", "space=hybrid"], "take both or neither"),
        (["method=l2", "space.shapes=[cyclic]"], "method.soft=true"),
        (
            ["method=fpgm", "method.granularity=weight", "objectives=quality_effective_flops"],
            "scores whole units",
        ),
    ):
        found = settings_of(home, *overrides)
        with pytest.raises(ConfigError, match=message):
            check_method(found, found.space.build())


def test_scores_that_are_not_finite_name_their_group(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path)
    with torch.no_grad():
        here.facts.model.get_parameter("stages.1.0.conv1.weight")[3] = float("nan")
    method = here.methods[0]
    with pytest.raises(Exception, match=r"group 'stages.1.0.conv1' has 1"):
        method.stages[0].pruner.scores(here.facts.model, here.facts.structure.full(), 0)
    assert np.isfinite(method.stages[0].scores).all()


def test_a_stopped_trial_is_charged_for_the_finetuning_that_it_got(
    home: Path, tmp_path: Path
) -> None:
    here = bench(home, tmp_path, "space.rounds=[1,4]")
    plan = here.propose(0.5, schedule__steps=1, finetune__rounds=4)
    stopped = here.evaluator(plan, 0, lambda unit, ratio, metrics: "enough" if unit == 1 else None)
    assert (stopped.state, stopped.trained_rounds) == ("stopped", 1)


def test_finetuning_that_a_guard_threw_away_is_paid_for_and_not_in_the_weights(
    home: Path, tmp_path: Path
) -> None:
    hurt = [
        "space.steps=[1,3]",
        "phases.finetune.recalibration_batches=0",
        "phases.finetune.round_steps=2",
    ]
    here = bench(home, tmp_path, GUARD % "slow_down", *hurt)
    found = here.evaluator(
        here.propose(0.05, schedule__steps=3, schedule__shape="linear"), 0, silent
    )
    if found.state == "completed":
        document = read_plan(here.store.folder / "0")
        assert document["lineage"]["links"][-1]["trained_rounds"] < found.trained_rounds
    else:
        assert found.trained_rounds > 0
