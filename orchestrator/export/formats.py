"""The table of export formats: one entry for each file in which a model can leave.

A new format is an entry here, and a module that writes and loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.export.int8 import quantise
from orchestrator.export.onnx import OnnxModel, require_packages, write_onnx
from orchestrator.export.pt2 import Program, nothing_to_install, write_pt2


@dataclass(frozen=True)
class Format:
    """A format, its `file` in a model's folder, and what writes and loads it.

    `require` raises ConfigError that says what to install where packages are missing. `write`
    exports a model to a path and gives the exported one as a module, which takes the inputs of the
    network and gives the tensors of its outputs: one, or a tuple of several. The batches of inputs
    are training data to calibrate with. `load` gives the module of a file. `exact` says that the
    file computes what the model does, but for the order of sums. `engine` names the engine in which
    the dense model is timed beside it. `usage` are the lines of Python that load and call it;
    `{file}` and `{inputs}` stand in for its path and its inputs' names. `options` are the keys of
    the job that `write` takes beside these three.
    Errors: ConfigError for a model that does not export, DataError for a file that does not load.
    """

    name: str
    file: str
    require: Callable[[], None]
    write: Callable[..., nn.Module]
    load: Callable[[Path], nn.Module]
    exact: bool
    engine: str
    usage: str
    options: tuple[str, ...] = ()

    def with_options(self, given: Mapping[str, Any]) -> Format:
        """The format that writes with those of the given options that are its own."""
        own = {name: given[name] for name in self.options}
        return replace(self, write=partial(self.write, **own))


_RUNTIME = """session = onnxruntime.InferenceSession("{file}")
outputs = session.run(None, dict(zip({inputs}, arrays)))"""
EXPORT_FORMATS = {
    entry.name: entry
    for entry in (
        Format(
            "pt2",
            "model.pt2",
            nothing_to_install,
            write_pt2,
            Program,
            exact=True,
            engine="pytorch",
            usage='outputs = torch.export.load("{file}").module()(*tensors)',
        ),
        Format(
            "onnx",
            "model.onnx",
            require_packages,
            write_onnx,
            OnnxModel,
            exact=True,
            engine="onnxruntime",
            usage=_RUNTIME,
            options=("opset",),
        ),
        Format(
            "int8",
            "model.int8.onnx",
            require_packages,
            quantise,
            OnnxModel,
            exact=False,
            engine="onnxruntime",
            usage=_RUNTIME,
            options=("opset",),
        ),
    )
}
"""By name; files differ."""
