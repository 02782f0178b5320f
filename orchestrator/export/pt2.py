"""Programs of torch.export, which plain PyTorch loads without this project."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.pruning.inputs import Inputs
from orchestrator.export.flat import Flat, tensors_of
from orchestrator.export.onnx import example_with_free_batch, first, quiet_exporter
from orchestrator.files import write_atomic


class Program(nn.Module):
    """A program from its file, called like the network that it was made from.

    Its outputs are a tensor, or a tuple of several, without gradients.
    Errors: DataError for a file that does not load.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        try:
            with quiet_exporter():
                self._program = torch.export.load(path).module()
        except Exception as error:  # torch raises what reading a zip file raises
            raise DataError(f"{path} must be a program of torch.export: {first(error)}") from error

    def train(self, mode: bool = True) -> Program:
        """Nothing: a program is what the model was in eval mode."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            outputs = tuple(self._program(*tensors_of((args, kwargs))))
        return outputs[0] if len(outputs) == 1 else outputs


def nothing_to_install() -> None:
    """PyTorch itself writes and loads these files."""


def write_pt2(model: nn.Module, batches: Iterable[Inputs], path: Path) -> Program:
    """Write `model` to `path` as a program with a free batch, and open the file.

    `torch.export.load(path).module()(*tensors)` gives a tuple of the outputs' tensors.
    Errors: ConfigError for a model that torch.export refuses.
    """
    (example,) = islice(batches, 1)
    device = next(model.parameters()).device
    tensors, shapes = example_with_free_batch(example.to(device))
    flat = Flat(model.eval(), example).eval()
    with quiet_exporter(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        try:
            program = torch.export.export(flat, tuple(tensors), dynamic_shapes=(tuple(shapes),))
        except Exception as error:  # the exporter raises what the model's code raises
            kind = type(error).__name__
            raise ConfigError(
                f"the model must export with torch.export; it does not: {kind}: {first(error)}"
            ) from error
        whole = Path(folder) / "model.pt2"
        torch.export.save(program, whole)
        write_atomic(path, whole.read_bytes())
    return Program(path)
