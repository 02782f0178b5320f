"""The bench of a study: the engine and conditions asked for, and the dense model timed once."""

from __future__ import annotations

import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.latency.bench import Bench, LatencyConditions, alone
from orchestrator.latency.engines import ENGINES
from orchestrator.progress import Progress
from orchestrator.settings import Settings
from orchestrator.settings.objectives import ObjectiveSettings
from orchestrator.stored import read_cache

UNSTEADY = 0.25
"""Distance of the quartiles of a model's ratio to itself from which on a person is warned."""


def bench_of(
    settings: Settings, model: nn.Module, example: Inputs, progress: Progress, keep: bool = True
) -> Bench:
    """The bench; its dense latency is measured when it is first asked for, and kept if `keep`.

    Errors: ConfigError where the engine is not there, or a batch of that size cannot be made.
    """
    conditions = latency_conditions(settings.objectives, example)
    folder = settings.study.baselines if keep else None
    key = digest([architecture(settings), under(conditions)])
    path = None if folder is None else folder / f"latency-dense-{key}.json"
    return Bench(conditions, model, partial(_dense_latency, conditions, model, path, progress))


def latency_conditions(objectives: ObjectiveSettings, example: Inputs) -> LatencyConditions:
    """The conditions that the settings describe, with `example` as one sample.

    Errors: ConfigError where the engine is not there, or a batch of that size cannot be made.
    """
    engine = ENGINES[objectives.engine]
    engine.require()
    if objectives.batch_size > 1 and example.batch != 1:
        raise ConfigError(
            f"objectives.batch_size={objectives.batch_size} needs inputs with the batch as their "
            "first dimension; those of this network have none in common: take batch_size=1"
        )
    return LatencyConditions(
        engine, example.repeated(objectives.batch_size), objectives.engine_threads
    )


def architecture(settings: Settings) -> dict[str, Any]:
    """What a latency depends on: the architecture, not the weights."""
    return settings.model.without("weights", "pretrained").to_json()


def under(conditions: LatencyConditions) -> list[object]:
    """The conditions as plain data, with the machine, the device and its threads."""
    return [*machine(conditions), conditions.engine.name, conditions.example.to_json()]


def machine(conditions: LatencyConditions) -> list[object]:
    """The machine, the device and its threads as plain data."""
    device = conditions.example.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    threads = conditions.threads or torch.get_num_threads()
    return [platform.node(), platform.machine(), kind, threads]


def _dense_latency(
    conditions: LatencyConditions, model: nn.Module, path: Path | None, progress: Progress
) -> float:
    """Milliseconds of the dense model, read back where they were kept.

    They are kept, so that ratios stay the same when a study goes on.
    """
    if path is not None:
        stored = read_cache(path, lambda data: _positive(data["latency_ms"]))
        if stored is not None:
            return stored
    spread, unsteadiness = alone(conditions, model)
    words = conditions.engine.words
    progress.phase(
        "latency",
        f"the dense model takes {spread.median:.3g} ms in {words} (quartiles {spread.lower:.3g} "
        f"and {spread.upper:.3g})",
    )
    if unsteadiness > UNSTEADY:
        progress.phase(
            "latency",
            f"this machine is unsteady: the dense model beside itself differs by {unsteadiness:.0%}"
            " (quartiles); other work on it makes differences below that uncertain",
        )
    if path is not None:
        document = {
            "latency_ms": spread.median,
            "lower_quartile_ms": spread.lower,
            "upper_quartile_ms": spread.upper,
            "unsteadiness": unsteadiness,
        }
        write_atomic(path, json.dumps(document, indent=1))
    return spread.median


def _positive(value: Any) -> float:
    if not 0.0 < float(value) < float("inf"):
        raise ValueError(f"milliseconds must be above 0; got {value!r}")
    return float(value)
