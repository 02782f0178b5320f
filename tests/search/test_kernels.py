"""Threads and memory formats by measurement: kept with the baselines, the fastest of what was
tried.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback

from lightning_modules.errors import ConfigError
from lightning_modules.phases.formats import FORMATS, channels_last_fault
from orchestrator.search.lab import prepare
from orchestrator.search.lab.kernels import choose_memory_format, choose_threads
from orchestrator.search.lab.lab import Training
from tests.search.problems import Prepared, lab_of


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def chosen(case: Prepared, value: object) -> str:
    settings = case.settings.model_copy(update={"threads": value})
    return choose_threads(settings, case.facts.structure, case.facts.model, case.data, CPU)


def test_auto_takes_the_fastest_and_keeps_what_it_measured(tmp_path: Path) -> None:
    case = Prepared(tmp_path, "made_up={}")
    said = chosen(case, "auto")
    (path,) = case.settings.study.baselines.glob("threads-*.json")
    measured = json.loads(path.read_text())
    assert set(measured) == {str(2**p) for p in range((os.cpu_count() or 1).bit_length())}
    fastest = min(measured, key=measured.get)
    assert torch.get_num_threads() == int(fastest)
    assert said.startswith(f"{fastest} of ")
    path.write_text(json.dumps({"1": 2.0, "2": 1.0}))
    chosen(case, "auto")
    assert torch.get_num_threads() == 2  # what was measured once is not measured again


def test_a_number_is_set_before_the_structure_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    looked_for = prepare.find_structure

    def find_structure(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return looked_for(*arguments)

    monkeypatch.setattr(prepare, "find_structure", find_structure)
    torch.set_num_threads(2)
    lab_of(tmp_path, "threads=1", "made_up={}")
    assert seen == [1]


def test_only_auto_measures(tmp_path: Path) -> None:
    case = Prepared(tmp_path, "made_up={}")
    torch.set_num_threads(2)
    assert chosen(case, None) == chosen(case, 1) == ""
    assert torch.get_num_threads() == 2
    assert not list(case.settings.study.baselines.glob("threads-*.json"))


def test_anything_else_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads"):
        lab_of(tmp_path, "threads=some")


def laid_out(
    case: Prepared, name: str, milliseconds: dict[str, float] | None = None
) -> tuple[str, str]:
    settings = case.settings.model_copy(update={"memory_format": name})
    if milliseconds is not None:
        (path,) = settings.study.baselines.glob("memory-format-*.json")
        path.write_text(json.dumps(milliseconds))
    return choose_memory_format(settings, case.facts.structure, case.facts.model, case.data, CPU)


STRAIGHT = ("model=vgg_small", "model.width=2", "data.size=32")
"""A model without strided 1 x 1 convolutions, which may lie channels last on any CPU."""


def test_channels_last_is_taken_where_it_is_much_faster_and_measured_once(tmp_path: Path) -> None:
    case = Prepared(tmp_path, *STRAIGHT, "made_up={}")  # has measured: auto is the default
    assert case.lab.memory_format in FORMATS
    (path,) = case.settings.study.baselines.glob("memory-format-*.json")
    assert set(json.loads(path.read_text())) == set(FORMATS)
    name, said = laid_out(case, "auto", {"contiguous": 4.0, "channels_last": 2.0})
    assert (name, said) == (
        "channels_last",
        "channels_last; a step with contiguous: 4.0 ms, channels_last: 2.0 ms",
    )
    assert laid_out(case, "auto", {"contiguous": 4.0, "channels_last": 3.5})[0] == "contiguous"
    assert laid_out(case, "channels_last") == ("channels_last", "")
    assert laid_out(case, "contiguous") == ("contiguous", "")


def test_weights_of_five_dimensions_have_no_channels_last(tmp_path: Path) -> None:
    case = Prepared(tmp_path, "memory_format=contiguous", "made_up={}")
    case.facts = replace(case.facts, model=torch.nn.Conv3d(1, 2, 3))
    assert laid_out(case, "auto") == ("contiguous", "")
    with pytest.raises(
        ConfigError, match="memory_format=channels_last needs weights of up to 4 dimensions"
    ):
        laid_out(case, "channels_last")
    assert not list(case.settings.study.baselines.glob("memory-format-*.json"))


def test_the_format_is_that_of_training_alone_and_says_the_same(tmp_path: Path) -> None:
    case = Prepared(tmp_path, *STRAIGHT, "memory_format=contiguous")
    found = {}
    for name in FORMATS:
        model, seen = copy.deepcopy(case.facts.model), []

        class Watch(Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
                weights = [p for p in module.model.parameters() if p.dim() == 4 and p.shape[1] > 1]
                seen.append(all(p.is_contiguous() for p in weights))  # noqa: B023

        replace(case.lab, memory_format=name).finetune(
            model, Training(1, 0, round_steps=3, callbacks=[Watch()])
        )
        assert seen == [name == "contiguous"] * 3
        assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
        found[name] = case.lab.validate(model)["loss"]
    assert found["channels_last"] == pytest.approx(found["contiguous"], rel=1e-3)


CPU = torch.device("cpu")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An x86 CPU without AVX-512."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")


@pytest.mark.usefixtures("narrow")
def test_strided_pointwise_convolutions_are_named_where_channels_last_would_corrupt_memory() -> (
    None
):
    def fault(*layers: torch.nn.Module) -> str:
        return channels_last_fault(torch.nn.Sequential(*layers), CPU)

    assert fault(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Conv2d(4, 4, 1), torch.nn.Linear(4, 2)) == ""
    assert fault(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 8, 1, stride=2)).startswith(
        "'1' may be a strided 1 x 1"
    )
    assert fault(torch.nn.Conv2d(4, 8, 1, stride=(1, 2)))
    loose = torch.nn.Module()
    loose.kernel = torch.nn.Parameter(torch.ones(4, 4, 1, 1))  # type: ignore[assignment]
    assert fault(loose).startswith("'0.kernel' may be")  # nobody knows how it is used
    assert channels_last_fault(torch.nn.Conv2d(4, 8, 1, stride=2), torch.device("cuda")) == ""


@pytest.mark.usefixtures("narrow")
def test_wide_instructions_and_other_processors_are_not_concerned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = torch.nn.Conv2d(4, 8, 1, stride=2)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    assert channels_last_fault(model, CPU) == ""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert channels_last_fault(model, CPU)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert channels_last_fault(model, CPU) == ""


@pytest.mark.usefixtures("narrow")
def test_channels_last_is_not_tried_where_it_would_corrupt_memory(tmp_path: Path) -> None:
    case = Prepared(tmp_path, "made_up={}")  # a ResNet
    assert case.lab.memory_format == "contiguous"
    assert not list(case.settings.study.baselines.glob("memory-format-*.json"))
    with pytest.raises(
        ConfigError,
        match=r"memory_format=channels_last cannot be used here: 'stages\.1\.0\.shortcut",
    ):
        laid_out(case, "channels_last")


@pytest.mark.usefixtures("narrow")
def test_images_that_lie_channels_last_are_refused_there(tmp_path: Path) -> None:
    case = Prepared(tmp_path, "made_up={}")

    class Photographs:
        def train_batches(self, seed: int) -> Iterator[list[torch.Tensor]]:
            yield [torch.zeros(4, 8, 8, 3).permute(0, 3, 1, 2), torch.zeros(4)]

    case.data = Photographs()
    with pytest.raises(
        ConfigError,
        match=r"images lie channels last in memory, and .*; give them as \.contiguous\(\)",
    ):
        laid_out(case, "auto")
