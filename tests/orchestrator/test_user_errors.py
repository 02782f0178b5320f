"""Bad input: one clear message, exit code 2, no traceback, before anything expensive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_modules.models import SmallResNet
from orchestrator.__main__ import main

SMALL = ["+experiment=digits_small", "tracking=none", "phases.train.epochs=0", "threads=1"]


class Bomb:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("boom",))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


CASES = {
    "model": (
        ["model=torchvision", "model.name=resnet5O", "data=digits_rgb"],
        r"'resnet5O'; nearest: resnet50",
    ),
    "target": (
        ["model._target_=lightning_modules.models.SmalResNet"],
        r"no 'SmalResNet'; nearest: SmallResNet",
    ),
    "package": (["model._target_=no.such.thing"], r"no module holds 'no.such.thing'"),
    "argument": (
        ["+model.widht=3"],
        r"unexpected keyword argument 'widht'; its arguments are num_classes",
    ),
    "data": (
        ["data=image_folder", "data.folder=/nowhere"],
        r"data.folder must hold train/<class>/ and val/<class>/",
    ),
    "method": (
        ["method=l3"],
        r"method has no 'l3'; nearest: l1, l2|method has no 'l3'; nearest: l2, l1",
    ),
    "metric": (["objectives.quality=acuracy"], r"got 'acuracy'; nearest: accuracy"),
    "weights": (
        ["model=resnet50", "data=digits_rgb", "model.weights=V9"],
        r"null or one of .*IMAGENET1K_V2",
    ),
    "classes": (
        ["model.num_classes=7"],
        r"output must be \(batch, 10\) for this data; it is \(batch, 7\)",
    ),
    "channels": (["data=digits_rgb"], r"the model must take the data's inputs \(\d+, 3, 32, 32\)"),
    "table": (
        ["data=table", "data.source=/nowhere.csv"],
        r"data.source must be the path of a CSV file, or one of breast_cancer, .*/nowhere.csv is",
    ),
    "columns": (
        ["data=table", "model=mlp", "model.features=30", "model.outputs=3", "data.source=wine"],
        r"the model must take the data's inputs \(\d+, 13\).*such as model.features",
    ),
    "bound": (
        ["objectives.bounds={flops_ratio: {most: 0.0001}}"],
        r"objectives.bounds.flops_ratio.most must be at least 0.0\d+, what the smallest plan has",
    ),
    "deleted": (
        ["objectives.max_flops_ratio=0.5"],
        r"is not a setting any more: take objectives.bounds=.flops_ratio",
    ),
    "deleted argument": (
        ["space.least_flops_ratio=0.1"],
        r"space.least_flops_ratio is not a setting any more: take space.flops_ratio=.least, most",
    ),
    "ratios": (
        ["space.flops_ratio=[0.5,0.1]"],
        r"space.flops_ratio must be .least, most. within \(0, 1\]; got \[0.5, 0.1\]",
    ),
    "section": (
        ["search.screening.share=0.5"],
        r"search.screening.share is not a setting any more: it did not pay",
    ),
    "combine": (
        ["+method.criterion.combine=max"],
        r"criterion.combine is not a setting any more: coupled",
    ),
    "trials": (
        ["study.budget=40trials"],
        r"for a number of trials take study.n_trials; got '40trials'",
    ),
    "cost": (["objectives.costs=[flop]"], r"a cost must be one of \['flops', .* nearest: flops"),
    "weight": (
        ["space.distillation=[0.3,0.9]", "phases.finetune.distillation.weight=0"],
        r"space.distillation .* needs phases.finetune.distillation with a weight above 0",
    ),
    "type": (["study.n_trials=many"], r"study.n_trials: Input should be a valid integer"),
    "types": (
        ["threads=many"],
        r"^threads: Input should be a valid integer, unable to parse .*, or 'auto'; got 'many'$",
    ),
    "mixed": (
        ["phases.finetune.distillation.mixed=2", "phases.finetune.distillation.weight=0"],
        r"distillation.mixed=2 needs dense outputs to learn from: weight above 0",
    ),
    "order": (
        ["search.chain.largest=0.01"],
        r"chain.smallest must be below chain.largest; got 0.05 and 0.01",
    ),
    "name": (["study.name=../../etc"], r"study.name: String should match pattern"),
    "seeds": (
        ["phases.confirm.seeds=[0]"],
        r"confirm.seeds: needs two seeds or more.* spread .*got \[0\]",
    ),
    "cuda": (
        ["device=cuda:99"],
        r"device=cuda:99 needs CUDA, and torch finds none|device must be auto, cpu, cuda or",
    ),
    "device": (
        ["device=quantum"],
        r"device must be auto, cpu, cuda or cuda:N of this machine; got 'quantum'",
    ),
    "checkpoint": (
        ["phases.train.checkpoint=/nowhere.pt"],
        r"phases.train.checkpoint must be a file; /nowhere.pt",
    ),
    "schedule": (["space.shapes=[sudden]"], r"space.shapes must be among .* got \['sudden'\]"),
    "stopping": (["stopping.keep=0"], r"stopping.keep must be a share in \(0, 1\]; got 0"),
    "optimizer": (
        ["+phases.finetune.optimizer.lrr=1"],
        r"torch.optim.SGD: got an unexpected keyword argument 'lrr'",
    ),
    "rate": (["phases.finetune.optimizer.lr=-1"], r"torch.optim.\w*: Invalid learning rate: -1"),
    "sampler": (
        ["sampler._target_=optuna.samplers.TPESampeler"],
        r"has no 'TPESampeler'; nearest: TPESampler",
    ),
    "key": (
        ["phases.finetune.unit_step=3"],
        r"no 'phases.finetune.unit_step'; nearest: phases.finetune.round_steps",
    ),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_bad_input_is_one_message_and_exit_code_two(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, message = CASES[case]
    assert main([*SMALL, *overrides]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(message, said), said


def test_inspect_refuses_what_search_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "job=inspect", "objectives.quality=acuracy"]) == 2
    assert "nearest: accuracy" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_or_runs_code_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_file(SmallResNet(10, width=4).state_dict(), "narrow.safetensors")
    assert main([*SMALL, "phases.train.checkpoint=narrow.safetensors"]) == 2
    assert (
        "the weights of narrow.safetensors do not fit the model: size mismatch for conv1.weight"
        in capsys.readouterr().err
    )
    torch.save({"conv1.weight": Bomb()}, "bomb.pt")
    assert main([*SMALL, "phases.train.checkpoint=bomb.pt"]) == 2
    said = capsys.readouterr()
    assert "holds more than tensors and was refused" in said.err
    assert "boom" not in said.out
    Path("noise.pt").write_bytes(b"not a checkpoint")
    assert main([*SMALL, "phases.train.checkpoint=noise.pt"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_checkpoint_that_fits_is_used_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    model = SmallResNet(10)
    torch.save(
        {"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}},
        "mine.ckpt",
    )
    few = [
        "made_up={}",
        "study.n_trials=1",
        "phases.finetune.round_steps=2",
        "phases.confirm.max_models=1",
        "phases.confirm.rounds=1",
    ]
    assert main([*SMALL, *few, "stopping=never", "phases.train.checkpoint=mine.ckpt"]) == 0

    (stored,) = Path("baselines").glob("*/weights.safetensors")
    assert torch.equal(load_file(stored)["conv1.weight"], model.state_dict()["conv1.weight"])


def test_a_folder_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").write_text("a file where a folder is needed")
    assert main(SMALL) == 2
    assert "folder must be writable" in capsys.readouterr().err
