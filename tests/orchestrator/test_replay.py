"""Models made anew from the dense checkpoint and their plans, bit for bit."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import orchestrator
from lightning_modules.errors import ConfigError, DataError
from orchestrator.__main__ import main
from orchestrator.jobs.replay import replay_or_fail
from orchestrator.search.plans.finished import read_plan
from orchestrator.search.plans.lineage import lineage_in
from tests.search.problems import Bench, bench, settings_of, silent

QUICK = ["phases.finetune.round_steps=2", "phases.finetune.recalibration_batches=1"]
GUARD = "phases.finetune.guard={tolerance: 0.05, action: slow_down}"
REWOUND = ["phases.train.rewind_epoch=1", "phases.finetune.begin=rewound"]
SPARSIFY = (
    "phases.sparsify={penalty:{_target_:lightning_modules.pruning.penalties.GroupLasso},rounds:1}"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the dense baselines of this module stand: each is trained once."""
    return tmp_path_factory.mktemp("home")


def chain(here: Bench, ratios: tuple[float, ...] = (0.6, 0.35, 0.2)) -> Path:
    """The folder of the last of a chain of plans, each the parent of the next; every one
    completed.
    """
    for number, ratio in enumerate(ratios):
        measured = here.evaluator(here.propose(ratio), number, silent)
        assert (measured.state, measured.parent) == ("completed", number - 1 if number else None)
    return here.store.folder / str(len(ratios) - 1)


def replayed(home: Path, tmp_path: Path, *overrides: str) -> list[str]:
    here = bench(home, tmp_path, *QUICK, *overrides)
    last = shutil.move(chain(here), tmp_path / "kept")
    shutil.rmtree(here.store.folder)  # the study is gone
    found = orchestrator.replay(here.settings, last)
    assert found.identical, [step.text() for step in found.steps]
    weights = load_file(last / "weights.safetensors")
    assert all(
        torch.equal(value, weights[name]) for name, value in found.model.state_dict().items()
    )
    return [step.name for step in found.steps]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["l2", "hybrid"])
def test_a_chain_of_three_is_replayed_bit_for_bit(home: Path, tmp_path: Path, method: str) -> None:
    names = replayed(home, tmp_path, f"method={method}", "space.steps=[2,2]")
    assert names == ["dense model", "trial 0", "trial 1", "trial 2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ["method=weight_l1", "space.steps=[2,2]"],
        ["method=soft_filter", "space.steps=[2,2]"],
        ["method=rigl"],
        ["method=surgery"],
        ["method=nm_2_4", "space=patterns"],
        ["method=taylor", "method.scope=global"],
        ["method=random"],
        ["method=activation_topk"],
        ["method=depth", "model.blocks=2"],
        ["method=weight_l1", "method.soft=true", "space.shapes=[cyclic]", "space.steps=[3,3]"],
        ["model=lstm_rows"],
        ["model=vit_small", "model.width=16", "method=head_dim"],
        [GUARD, "space.steps=[2,2]"],
        [*REWOUND, "space.steps=[2,2]"],
        ["phases.finetune.begin=fresh"],
        ["phases.finetune.lr=rewound"],
        [SPARSIFY],
        ["phases.finetune.distillation.features=[stages.0,stages.1]"],
        ["phases.finetune.distillation.mixed=2"],
    ],
    ids=" ".join,
)
def test_everything_that_can_happen_in_a_trial_is_replayed(
    home: Path, tmp_path: Path, how: list[str]
) -> None:
    here = bench(home, tmp_path, *QUICK, *how)
    for number, ratio in enumerate((0.6, 0.35, 0.2)):
        here.evaluator(here.propose(ratio), number, silent)
    last = max(here.store.finished(), key=lambda plan: (len(plan.ancestors), plan.number))
    found = orchestrator.replay(here.settings, here.store.folder / str(last.number))
    assert found.identical, [step.text() for step in found.steps]


@pytest.mark.slow
def test_a_replay_takes_from_the_plan_whether_whole_blocks_were_pruned(
    home: Path, tmp_path: Path
) -> None:
    here = bench(home, tmp_path, *QUICK, "model.blocks=2", "study.budget=1h")
    last = chain(here)
    kept = lineage_in(read_plan(last), last).links[-1].plan["kept"]
    assert [
        kept[group.name] for group in here.facts.structure.groups if group.kind == "block"
    ].count(0) == 3
    plain = settings_of(home, *QUICK, "model.blocks=2")
    assert not plain.depth
    assert orchestrator.replay(plain, last).identical


STUDY = [
    "+experiment=digits_small",
    "study.name=digits_small",
    "model.width=8",
    "phases.train.epochs=3",
    "phases.finetune.round_steps=4",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=3",
    "phases.confirm.baselines=[]",
    "search.chain.targets=3",
    "threads=1",
    "study.n_trials=4",
    "tracking=none",
]


@pytest.mark.slow
@pytest.mark.family
def test_an_exported_model_and_the_configuration_suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(STUDY) == 0
    models = tmp_path / "runs" / "digits_small" / "models"
    deepest = max(
        models.iterdir(),
        key=lambda path: len(json.loads((path / "plan.json").read_text())["ancestors"]),
    )
    shutil.copytree(deepest, tmp_path / "model")
    digest = hashlib.sha256((deepest / "weights.safetensors").read_bytes()).hexdigest()
    document = json.loads((deepest / "plan.json").read_text())
    assert document["confirmation"]["weights"] == digest
    assert len(document["ancestors"]) >= 2
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "baselines")
    capsys.readouterr()
    assert main([*STUDY, "job=replay", "job.model=model"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("identical") == 2 + len(document["lineage"]["links"])
    assert "confirmation, seed" in shown
    assert not (tmp_path / "runs").exists()
    # another number of rounds in the confirmation to come does not matter: the document has its own
    assert main([*STUDY, "job=replay", "job.model=model", "phases.confirm.rounds=5"]) == 0
    assert main([*STUDY, "job=replay"]) == 2
    assert "job.model must have a value; give it as job.model=..." in capsys.readouterr().err
    assert main([*STUDY, "job=replay", "job.model=model", "seed=5"]) == 2
    assert "seed was 0, now 5" in capsys.readouterr().err


def test_what_differs_is_said_with_how_far_and_what_was_different_around_it(
    home: Path, tmp_path: Path
) -> None:
    here = bench(home, tmp_path, *QUICK, "space.rounds=[1,1]")
    last = chain(here, (0.6, 0.4))
    settings = here.settings
    weights = load_file(last / "weights.safetensors")
    weights["fc.bias"][0] += 0.5
    save_file(weights, last / "weights.safetensors")
    document = json.loads((last / "plan.json").read_text())
    link = document["lineage"]["links"][1]
    link["weights"] = hashlib.sha256((last / "weights.safetensors").read_bytes()).hexdigest()
    link["made_with"]["threads"] = 64
    (last / "plan.json").write_text(json.dumps(document))
    steps = orchestrator.replay(settings, last).steps
    assert [step.identical for step in steps] == [True, True, False]
    assert steps[2].difference == pytest.approx(0.5)
    with pytest.raises(
        DataError,
        match=r"differs from 'trial 1' on, different: by up to 0.5, threads was 64, now 1",
    ):
        replay_or_fail(settings, str(last))
    document["lineage"]["links"][0]["plan"]["seed"] += 1  # another order of batches
    document["lineage"]["links"][1]["plan"]["kept"]["conv1"] -= 1
    (last / "plan.json").write_text(json.dumps(document))
    steps = orchestrator.replay(settings, last).steps
    assert [step.identical for step in steps] == [True, False, False]
    assert 0.0 < (steps[1].difference or 0.0) < math.inf
    assert steps[2].difference == math.inf
    assert "other units were kept" in steps[2].text()
    shutil.rmtree(last.parent / "0")
    assert (
        orchestrator.replay(settings, last).steps[1].text()
        == "different: the weights are not at hand to compare"
    )


@pytest.mark.slow
def test_a_model_is_made_again_in_the_memory_format_it_had(home: Path, tmp_path: Path) -> None:
    # without strided 1 x 1 convolutions, which channels last would not be safe for on every CPU
    straight = [*QUICK, "space.rounds=[1,1]", "model=vgg_small", "model.width=2", "data.size=32"]
    last = chain(bench(home, tmp_path, *straight, "memory_format=channels_last"), (0.6, 0.4))
    document = json.loads((last / "plan.json").read_text())
    assert [link["made_with"]["memory_format"] for link in document["lineage"]["links"]] == [
        "channels_last"
    ] * 2
    measured = settings_of(home, f"study.out={tmp_path}", *straight)  # auto
    steps = orchestrator.replay(measured, last).steps
    assert [step.text() for step in steps] == ["identical"] * 3
    other = settings_of(home, f"study.out={tmp_path}", *straight, "memory_format=contiguous")
    assert (
        "memory_format was channels_last, now contiguous"
        in orchestrator.replay(other, last).steps[1].text()
    )


def test_a_replay_leaves_a_memory_format_that_would_corrupt_memory_here(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    last = chain(bench(home, tmp_path, *QUICK), (0.6,))
    document = json.loads((last / "plan.json").read_text())
    document["lineage"]["links"][0]["made_with"]["memory_format"] = "channels_last"
    (last / "plan.json").write_text(json.dumps(document))
    step = orchestrator.replay(settings_of(home, f"study.out={tmp_path}", *QUICK), last).steps[1]
    assert step.text() == "identical, although memory_format was channels_last, now contiguous"


def test_other_settings_and_folders_without_a_lineage_are_refused(
    home: Path, tmp_path: Path
) -> None:
    here = bench(home, tmp_path, *QUICK)
    last = chain(here, (0.6,))
    other = settings_of(home, f"study.out={tmp_path}", *QUICK, "phases.finetune.optimizer.lr=0.3")
    with pytest.raises(ConfigError, match=r"phases.finetune.optimizer.lr was [0-9.]+, now 0.3"):
        orchestrator.replay(other, last)
    document = json.loads((last / "plan.json").read_text())
    document.pop("lineage")
    (last / "plan.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="must carry the chain it came from"):
        orchestrator.replay(here.settings, last)
    with pytest.raises(DataError, match="a pruned model is a folder with"):
        orchestrator.replay(here.settings, tmp_path / "nowhere")


def test_the_model_of_a_baseline_has_no_chain_to_replay(tmp_path: Path) -> None:
    plan = {"origin": "uniform", "matches": 3, "keep": {}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    settings = orchestrator.load_settings({"experiment": "digits_small"})
    with pytest.raises(ConfigError, match=r"baseline 'uniform'.*take trial 3"):
        orchestrator.replay(settings, tmp_path)
