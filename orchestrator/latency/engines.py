"""The engines in which latencies are measured: one function and one entry in the table for each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.tasks.whole import pruned_part
from orchestrator.export.int8 import quantise
from orchestrator.export.onnx import OnnxModel, export_onnx_quickly, require_packages
from orchestrator.latency.kernels import kernel_ms
from orchestrator.latency.timing import Pass

_CPU = torch.device("cpu")
Prepare = Callable[[nn.Module, Inputs, int | None], Pass]
"""Makes the passes of a model on inputs, with so many threads (None: torch's number)."""


@dataclass(frozen=True)
class Engine:
    """An engine by `name`, and in `words` for people.

    `require` raises ConfigError where packages or tools are missing, and says what to install.
    `prepare` loads a model; it raises ConfigError for one that the engine does not take. `kernels`
    gives the milliseconds of a single layer as the engine itself tells them, with something that
    runs before each pass; None: its passes are timed.
    """

    name: str
    words: str
    require: Callable[[], None]
    prepare: Prepare
    kernels: Callable[[nn.Module, Inputs, int | None, Pass], float] | None = None


def _nothing() -> None:
    """PyTorch is there."""


def _pytorch(model: nn.Module, example: Inputs, threads: int | None) -> Pass:
    """The model as it is, on the device of the example."""
    # Lightning leaves what it has trained on the _CPU
    return _waiting(model.to(example.device).eval(), example, threads)


def _compiled(model: nn.Module, example: Inputs, threads: int | None) -> Pass:
    """What torch.compile makes of a copy of the network."""
    network = copy_of(pruned_part(model)).to(example.device).eval()
    # each pruned network has other shapes: none is to be taken for a dynamic one
    compiled = torch.compile(network, dynamic=False)
    return _waiting(compiled, example, threads)


def _waiting(model: Callable[..., Any], example: Inputs, threads: int | None) -> Pass:
    """A pass without gradients that returns when the device has done."""
    devices = set()
    for tensor in example.tensors():
        if tensor.device.type == "cuda":
            devices.add(tensor.device)
    number = threads or torch.get_num_threads()

    def run() -> None:
        before = torch.get_num_threads()
        if number != before:
            torch.set_num_threads(number)
        with torch.no_grad():
            example.call(model)
        # kernels run asynchronously: a clock says nothing before they have ended
        for device in devices:
            torch.cuda.synchronize(device)
        if number != before:
            torch.set_num_threads(before)

    return run


def _onnxruntime(model: nn.Module, example: Inputs, threads: int | None) -> Pass:
    return _session(model, example, threads, export_onnx_quickly)


def _onnxruntime_int8(model: nn.Module, example: Inputs, threads: int | None) -> Pass:
    """Ranges of the activations come from the example alone: a latency does not depend on them."""

    def write(network: nn.Module, inputs: Inputs, path: Path) -> None:
        quantise(network, [inputs], path)

    return _session(model, example, threads, write)


def _session(
    model: nn.Module,
    example: Inputs,
    threads: int | None,
    write: Callable[[nn.Module, Inputs, Path], None],
) -> Pass:
    """Passes of ONNX Runtime on the _CPU; an exported model runs as the file that it is."""
    here = example.to(_CPU)
    if isinstance(model, OnnxModel):
        return model.passes(here)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(copy_of(pruned_part(model)).to(_CPU).eval(), here, path)
        return OnnxModel(path, threads).passes(here)


def _require_compiler() -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None:
        raise ConfigError(
            "objectives.engine=compile needs a C++ compiler, and this machine has none (c++, g++): "
            "install one, or take objectives.engine=pytorch or onnxruntime"
        )


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("pytorch", "PyTorch", _nothing, _pytorch),
        Engine("compile", "torch.compile", _require_compiler, _compiled),
        Engine("onnxruntime", "ONNX Runtime", require_packages, _onnxruntime, kernel_ms),
        Engine("onnxruntime_int8", "ONNX Runtime, int8", require_packages, _onnxruntime_int8),
    )
}
"""By name. A new engine is a function above and an entry here."""
