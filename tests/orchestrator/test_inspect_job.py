"""Looking before paying."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import orchestrator
from lightning_modules.data import digits
from lightning_modules.pruning.structure import Group, Member, Product, Skipped, Structure
from orchestrator.__main__ import main
from orchestrator.report.structure import (
    INSPECT_WIDTH,
    groups_table,
    inexact,
    not_prunable,
    shortened,
)
from orchestrator.report.tables import show
from orchestrator.search.lab import expected


def test_inspect_shows_groups_skips_costs_and_duration_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["+experiment=digits_small", "job=inspect", "threads=1"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "stages.1.0.conv1",
        "dense FLOPs",
        "prunable",
        "it is the model's output",
        "fc",
        "expected duration",
        "best case",
        "50.6 %",
        "1.0.shortcut.0",
    ):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= INSPECT_WIDTH
    assert list(tmp_path.iterdir()) == []


def test_inspect_from_python_gives_the_numbers() -> None:
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
    settings = orchestrator.load_settings(
        {
            "model": {"_target_": "lightning_modules.models.SmallResNet", "num_classes": 10},
            "data": {"_target_": "lightning_modules.data.digits"},
            "task": {"_target_": "lightning_modules.tasks.Classification"},
            "method": {
                "name": "l2",
                "criterion": {"_target_": "lightning_modules.pruning.criteria.Magnitude"},
            },
            "space": {"_target_": "orchestrator.search.space.Allocation", "offset": 0.0},
            "sampler": {"_target_": "optuna.samplers.RandomSampler"},
            "stopping": {"_target_": "orchestrator.search.stopping.Never"},
            "objectives": {},
            "phases": {
                "train": {"optimizer": sgd, "epochs": 1},
                "finetune": {"optimizer": sgd, "round_steps": 1},
            },
            "tracking": {"_target_": "orchestrator.tracking.none.NoTracker"},
            "job": {"_target_": "orchestrator.jobs.inspect.inspect"},
            "study": {"name": "s", "n_trials": 3},
        }
    )
    found = orchestrator.inspect(settings)
    assert found.macs == 763_520
    assert found.params == sum(p.numel() for p in settings.model.build().parameters())
    assert found.prunable_macs_fraction == 1.0
    assert found.dimensions == 5
    assert [group.size for group in found.structure.groups] == [16, 16, 32, 32, 64, 64]
    assert found.total_seconds > 0.0
    assert found.free is None


def small() -> Structure:
    """Two convolutions in a row, the first with a long name; 4 units, then 10 fixed outputs."""
    name = "a_network.with_a_long.path_to_each.of_its_layers.conv1"
    units = np.arange(4, dtype=np.int32)
    pixels = np.full(3, -1, dtype=np.int32)
    outputs = np.full(10, -1, dtype=np.int32)
    products = (
        Product(name, 1, (units, pixels), f"{name}.weight"),
        Product("fc", 1, (outputs, units), "fc.weight"),
    )
    members = (
        Member(f"{name}.weight", 0, "out"),
        Member("norm.weight", 0, "out"),
        Member("twin.weight", 0, "out"),
        Member("fc.weight", 1, "in"),
    )
    twin = Product("twin", 1, (units, pixels), "twin.weight")
    group = Group(name, 0, 4, members, mask_exact=False)
    skipped = (Skipped("fc", "it is the model's output"), Skipped("gate", "nobody knows"))
    return Structure((group,), {}, (*products, twin), (*products, twin), skipped, 3, 2)


def test_a_group_shows_what_it_carries_and_what_is_cut_with_it() -> None:
    stream = io.StringIO()
    show(groups_table("net", small(), {small().groups[0].name: 0.25}), stream, INSPECT_WIDTH)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= INSPECT_WIDTH
    cells = [cell.strip() for cell in lines[-2].strip("| ").split("|")]
    # all MACs go with the only group; norms make no units, the twin does
    assert cells == [
        "a.w.p.o.conv1",
        "4",
        "channel",
        "100.0 %",
        "100.0 %",
        "25.0 %",
        "twin",
    ]


def test_what_stays_whole_is_said_with_its_reason() -> None:
    assert not_prunable(small()) == [
        ("not prunable", "it is the model's output: fc"),
        ("not prunable", "nobody knows: gate"),
    ]
    ((name, why),) = inexact(small().groups)
    assert name == "removed is not masked"
    assert "conv1" in why


@pytest.mark.parametrize(
    ("length", "short"),
    [
        (35, "f.denseblock1.denselayer12.conv1"),
        (24, "f.d1.denselayer12.conv1"),
        (16, "f.d1.d12.conv1"),
        (11, "f.d1...onv1"),
    ],
)
def test_a_long_name_keeps_its_end_and_its_digits(length: int, short: str) -> None:
    name = "features.denseblock1.denselayer12.conv1"
    assert shortened(name, len(name)) == name
    assert shortened(name, length) == short


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"name": "resnet50", "num_classes": 10}, "resnet50"),
        ({"name": None, "folder": "nets/my-bert"}, "my-bert"),
        ({}, "torchvision"),
    ],
)
def test_a_network_has_its_own_name_and_not_its_librarys(
    arguments: dict[str, Any], name: str
) -> None:
    model = {"_target_": "lightning_modules.models.torchvision", **arguments}
    assert orchestrator.load_settings({"model": model}).model_name() == name


@pytest.mark.slow
def test_what_is_free_to_go_is_known_once_the_dense_model_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["method=obs", "made_up={noise: 0.01}", "threads=1", "model.width=8", "tracking=none"]
    assert main([*words, "job=inspect"]) == 0
    assert "known once the dense model is trained" in capsys.readouterr().out
    assert main([*words, "quiet=true", "study.n_trials=1", "search.chain.targets=1"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("The front: accuracy on test data")
    assert "hypervolume" not in captured.out
    assert main([*words, "job=inspect"]) == 0
    shown = capsys.readouterr().out
    assert "what follows stays the same without them" in shown
    (header,) = [line for line in shown.splitlines() if "cut with" in line]
    assert "free" in header
    assert max(map(len, shown.splitlines())) <= INSPECT_WIDTH


def test_the_expected_duration_counts_what_a_search_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each phase at made-up prices, which need no clock: a step 1 s, a call 10 s, a pass over data
    100 s.
    """
    monkeypatch.chdir(tmp_path)
    one = expected.ModelSeconds(step=1.0, call=10.0, validation=100.0, test=1000.0)
    monkeypatch.setattr(expected, "prices", lambda *_: one)
    settings = orchestrator.load_settings(
        {
            "experiment": "digits_small",
            "study.n_trials": 3,
            "phases.train.epochs": 2,
            "phases.finetune.round_steps": 5,
            "phases.finetune.recalibration_batches": 0,
            "phases.profile.batches": 1,
            "phases.confirm": {
                "rounds": 2,
                "max_models": 1,
                "baselines": ["uniform"],
            },
            "search.chain.targets": 2,
            "space": {"steps": [1, 1], "rounds": [2, 2]},
        }
    )
    found = orchestrator.inspect(settings)
    batches = len(settings.data.build().train_batches(0))
    trial, settled = 10 + 2 * (5 + 100), 2 * (10 + 2 * 5 + 100 + 1000)
    assert found.seconds["dense training"] == 10 + 2 * (batches + 100) + 100
    assert found.seconds["profile"] == pytest.approx(len(found.structure.groups) * 2 / 3)
    assert found.seconds["search"] == 3 * trial
    assert found.seconds["confirmation"] == 2 * settled  # and the dense model
    assert found.seconds["baselines"] == (10 + 2 * 3 * 5) + settled
    assert 0.0 < found.seconds["start-up"] < 120.0


def test_a_budget_in_time_is_what_a_job_takes() -> None:
    settings = orchestrator.load_settings({"experiment": "digits_small", "study.budget": "20min"})
    assert orchestrator.inspect(settings).total_seconds == pytest.approx(1200.0)


def test_steps_are_timed_on_the_batches_of_the_data_with_their_augmentation() -> None:
    """A loader that takes 20 ms for each batch makes a step of at least so many."""
    slow = {"_target_": f"{__name__}.slow_digits"}
    fast = orchestrator.load_settings({"experiment": "digits_small"})
    settings = orchestrator.load_settings({"experiment": "digits_small", "data": slow})
    model, device = fast.model.build(), torch.device("cpu")
    assert expected.prices(settings, model, settings.data.build(), device).step > 0.02


class _Slow:
    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            time.sleep(0.02)
            yield batch


def slow_digits() -> Any:
    found = digits()
    whole = found.train_batches
    found.train_batches = lambda seed: _Slow(whole(seed))  # type: ignore[assignment, return-value]
    return found
