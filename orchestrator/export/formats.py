"""The table of export formats: one entry for each file in which a model can leave.

A new format is an entry here, and a module that writes and loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lightning_modules.phases.quantization import Int8Model, quantise, require_packages
from lightning_modules.pruning.inputs import Inputs


@dataclass(frozen=True)
class Format:
    """A format, its `file` in a model's folder, and what writes and loads it.

    `require` raises ConfigError that says what to install where packages are missing. `write`
    exports a model to a path and gives the exported one as a module, which takes the inputs of the
    network; the batches of inputs are training data to calibrate with. `load` gives the module of a
    file. Errors: ConfigError for a model that does not export, DataError for a file that does not
    load.
    """

    name: str
    file: str
    require: Callable[[], None]
    write: Callable[[nn.Module, Iterable[Inputs], Path], nn.Module]
    load: Callable[[Path], nn.Module]


EXPORT_FORMATS = {
    entry.name: entry
    for entry in (Format("int8", "model.int8.onnx", require_packages, quantise, Int8Model),)
}
"""By name; files differ."""
