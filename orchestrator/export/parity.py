"""Whether an exported file does what the model does, on real data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_modules.errors import UserError
from lightning_modules.pruning.inputs import Inputs, run
from orchestrator.export.flat import Restored, tensors_of
from orchestrator.export.formats import Format
from orchestrator.stored import sha256_of

CLOSE = 1e-3
"""Largest difference of an exact format's outputs, as a multiple of the largest output."""

Measure = Callable[[nn.Module], Mapping[str, float]]
"""The task's metrics of a network on validation data."""


@dataclass(frozen=True)
class Exported:
    """One format of a model: its file, and how it compares with the model in PyTorch.

    `largest_difference` is that of all outputs, `largest_output` what it compares with.
    `equal_predictions` is the share of samples with the same class, None where outputs are no
    scores of classes. `metrics` are the task's, measured in the format's engine. `latency_ms` is
    that of the file, `latency_iqr_ms` the distance of its quartiles, `dense_latency_ms` that of the
    dense model in floating point beside it. A `reason` says why there is no usable file.
    """

    format: str
    file: str
    size_mb: float = 0.0
    load_seconds: float = 0.0
    sha256: str = ""
    largest_difference: float = 0.0
    largest_output: float = 0.0
    equal_predictions: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    latency_ms: float | None = None
    latency_iqr_ms: float | None = None
    dense_latency_ms: float | None = None

    @property
    def faster(self) -> float | None:
        """How many times as fast as the dense model; None where that was not measured."""
        if not self.latency_ms or not self.dense_latency_ms:
            return None
        return self.dense_latency_ms / self.latency_ms


@dataclass(frozen=True)
class Comparison:
    """The `model` on the CPU, and what its exports are compared on.

    `samples` are inputs from validation data, `calibration` from training data. `measure` gives the
    task's metrics.
    """

    model: nn.Module
    samples: Sequence[Inputs]
    calibration: Sequence[Inputs]
    measure: Measure

    def export(self, form: Format, folder: Path) -> Exported:
        """Write the format's file into the folder, load it, and compare.

        A model that the format cannot take is reported with the reason, and so is a file of an
        exact format that computes something else; that file is deleted.
        """
        path = folder / form.file
        try:
            form.require()
            form.write(self.model, self.calibration, path)
            exported = self._compared(form, path)
        except UserError as error:
            exported = Exported(form.name, form.file, reason=str(error))
        except Exception as error:  # exporters and engines raise whatever they come upon
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            exported = Exported(form.name, form.file, reason=reason)
        if exported.reason:
            path.unlink(missing_ok=True)
        return exported

    def _compared(self, form: Format, path: Path) -> Exported:
        begin = time.perf_counter()
        loaded = form.load(path)
        seconds = time.perf_counter() - begin
        network = Restored(loaded, run(self.model, self.samples[0]))
        expected = _network_outputs(self.model, self.samples)
        outputs = _network_outputs(network, self.samples)
        largest = _largest(expected)
        difference = _largest_difference(expected, outputs)
        reason = ""
        if form.exact and not difference <= CLOSE * max(largest, 1.0):
            reason = f"its outputs differ from the model's by {difference:.3g} of {largest:.3g}"
        return Exported(
            form.name,
            form.file,
            path.stat().st_size / 1e6,
            seconds,
            sha256_of(path),
            difference,
            largest,
            _equal_predictions(expected, outputs),
            {} if reason else self.measure(network),
            reason,
        )


def _network_outputs(network: nn.Module, samples: Iterable[Inputs]) -> list[list[Tensor]]:
    """The outputs' tensors, batch by batch."""
    return [tensors_of(run(network, batch)) for batch in samples]


def _largest(outputs: Iterable[Sequence[Tensor]]) -> float:
    largest = 0.0
    for tensors in outputs:
        for tensor in tensors:
            largest = max(largest, float(tensor.abs().max()))
    return largest


def _largest_difference(
    expected: Iterable[Sequence[Tensor]], outputs: Iterable[Sequence[Tensor]]
) -> float:
    """The largest absolute one; not a number where there is one that is none."""
    differences = [0.0]
    for ones, others in zip(expected, outputs, strict=True):
        for one, other in zip(ones, others, strict=True):
            differences.append(float((one.double() - other.double()).abs().max()))
    return float(torch.tensor(differences).max())


def _equal_predictions(
    expected: Sequence[Sequence[Tensor]], outputs: Sequence[Sequence[Tensor]]
) -> float | None:
    """The share of samples whose largest output is the same, where outputs are (N, classes)."""
    if len(expected[0]) != 1 or expected[0][0].dim() != 2 or expected[0][0].shape[1] < 2:
        return None
    equal = []
    for (one,), (other,) in zip(expected, outputs, strict=True):
        equal.append(one.argmax(1) == other.argmax(1))
    return float(torch.cat(equal).double().mean())
