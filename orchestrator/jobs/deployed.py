"""The latency of exported files, beside the dense model in the same engine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from lightning_modules.errors import UserError
from lightning_modules.pruning.inputs import Inputs
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.export.parity import Exported
from orchestrator.latency.timing import Spread, ratios_to_first, timed_in_turn
from orchestrator.search.lab.latencies import latency_conditions
from orchestrator.settings.objectives import CHANNEL_BLOCK, ObjectiveSettings

FALLS_BEHIND = 0.75
"""Share of the speed-up that the FLOPs promise, below which a person is told of it."""


def with_latencies(
    exports: Sequence[Exported],
    folder: Path,
    dense: nn.Module,
    example: Inputs,
    objectives: ObjectiveSettings,
) -> list[Exported]:
    """The exports with their latencies; those that could not be timed as they were.

    `example` is one sample. The batch and the threads are those of the settings.
    """
    timed = []
    for export in exports:
        try:
            timed.append(_timed(export, folder, dense, example, objectives))
        except UserError:
            # the dense model may be what the engine does not take
            timed.append(export)
    return timed


def _timed(
    export: Exported,
    folder: Path,
    dense: nn.Module,
    example: Inputs,
    objectives: ObjectiveSettings,
) -> Exported:
    if export.reason:
        return export
    form = EXPORT_FORMATS[export.format]
    engine = objectives.model_copy(update={"engine": form.engine})
    conditions = latency_conditions(engine, example)
    if form.engine == "pytorch":
        # a program has a cost of its own for each pass: it is timed beside a program
        with tempfile.TemporaryDirectory() as scratch:
            dense = form.write(dense, [example], Path(scratch) / form.file)
    passes = [conditions.prepare(dense), conditions.prepare(form.load(folder / export.file))]
    milliseconds = timed_in_turn(passes)
    dense_ms = Spread.of(milliseconds[:, 0]).median
    (ratio,) = ratios_to_first(milliseconds)
    latency = ratio.times(dense_ms)
    return replace(
        export,
        latency_ms=latency.median,
        latency_iqr_ms=latency.upper - latency.lower,
        dense_latency_ms=dense_ms,
    )


def shortfall(export: Exported, flops_ratio: float, rounding: int) -> str:
    """What to say of a file that is not nearly as fast as its FLOPs promise; "" of any other.

    `rounding` is the multiple that widths have.
    """
    form = EXPORT_FORMATS[export.format]
    if export.faster is None or export.faster * flops_ratio >= FALLS_BEHIND or not form.exact:
        return ""
    words = (
        f"{export.file} is {export.faster:.1f}x as fast as the dense model, and has "
        f"{1.0 / flops_ratio:.1f}x fewer FLOPs"
    )
    if form.engine == "onnxruntime" and rounding % CHANNEL_BLOCK:
        words += (
            f"; ONNX Runtime takes {CHANNEL_BLOCK} channels at a time: search with "
            "method.round_to=8, or for the latency itself with objectives=quality_latency "
            "objectives.engine=onnxruntime"
        )
    return words
