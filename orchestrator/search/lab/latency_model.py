"""Latency estimated from kept counts alone: a linear model, fitted once to measurements on this
device.

The features are products of axis lengths (see `Features`), the coefficients milliseconds and not
negative, so that a plan that keeps less of everything is never estimated slower.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import nn

from lightning_modules.phases.latency import latency_ms
from lightning_modules.pruning.cost import Features
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Counts, Structure, some_of
from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.stored import kept

PLANS = 48
HELD_OUT = 12
PASSES = 2
"""Rounds of measurement, of which the lower counts: what else the machine does only ever makes a
model slower.
"""


@dataclass(frozen=True)
class LatencyModel:
    """`coefficients` in ms per feature, of shape (n_features,); errors are of plans that it was not
    fitted to.

    `mean_error` and `worst_error` are |estimated / measured - 1|.
    """

    features: Features
    coefficients: npt.NDArray[np.float64]
    mean_error: float
    worst_error: float

    def __call__(self, counts: Counts) -> float:
        """Milliseconds at batch 1; `counts` has shape (n_groups,)."""
        return float(self.features(counts) @ self.coefficients)


def fit_latency(
    features: Features, counts: Counts, measured: npt.NDArray[np.float64], held: int = HELD_OUT
) -> LatencyModel:
    """Least squares of the relative error; shapes (n_plans, n_groups) and (n_plans,).

    The last `held` plans tell the error of a model fitted to the others; the model returned is
    fitted to all.
    """
    x = features(counts)
    some = _coefficients(x[:-held], measured[:-held])
    errors = np.abs(x[-held:] @ some / measured[-held:] - 1.0)
    return LatencyModel(
        features, _coefficients(x, measured), float(errors.mean()), float(errors.max())
    )


def _coefficients(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = nnls(x / y[:, None], np.ones(len(y)))[0]
    return found


def random_counts(structure: Structure, n_plans: int, seed: int) -> Counts:
    """Plans of all sizes, the dense one first; shape (n_plans, n_groups).

    Each has a level, log-uniform from a twentieth to all, and its groups lie within an octave
    around it.
    """
    generator = np.random.default_rng(seed)
    level = np.exp(generator.uniform(np.log(0.05), 0.0, (n_plans, 1)))
    shares = np.minimum(
        1.0, level * np.exp2(generator.uniform(-0.5, 0.5, (n_plans, len(structure.groups))))
    )
    shares[0] = 1.0
    drawn = np.rint(shares * structure.sizes)
    single = structure.sizes == 1  # a whole block goes or stays
    drawn = np.where(single & (generator.uniform(size=drawn.shape) < 0.3), 0.0, drawn)
    drawn[0] = structure.sizes
    return np.clip(drawn, structure.least, structure.sizes).astype(np.int64)


def pruned(model: nn.Module, structure: Structure, kept: Counts) -> nn.Module:
    """An untrained model of these counts: enough for what depends on shapes alone."""
    return remove(model, structure, some_of(structure, kept)).eval()


def latency_model(
    model: nn.Module,
    structure: Structure,
    example: Inputs,
    folder: Path | None,
    name: object,
    tick: Callable[[int, int], None],
) -> LatencyModel:
    """Measured and fitted once, then read back from `folder` (None: not kept); `name` says which
    model it is.

    `name` is plain data; `tick` is told (measurements done, of how many).
    """
    features = Features(structure)
    sizes = [[group.name, group.size] for group in structure.groups]
    key = digest([name, sizes, example.to_json(), here(example.device), PLANS, PASSES])
    path = None if folder is None else folder / f"latency-{key}.json"
    if (
        path is not None
        and (stored := kept(path, lambda data: _parsed(data, features, structure))) is not None
    ):
        return stored
    counts = random_counts(structure, PLANS, 0)
    measured = np.full(PLANS, np.inf)
    for turn in range(PASSES * PLANS):
        place = turn % PLANS
        latency = latency_ms(pruned(model, structure, counts[place]).to(example.device), example)
        measured[place] = min(measured[place], latency)
        tick(turn + 1, PASSES * PLANS)
    found = fit_latency(features, counts, measured)
    if path is None:
        return found
    document = {
        "held_out_error": {"mean": found.mean_error, "worst": found.worst_error, "plans": HELD_OUT},
        "coefficients_ms": found.coefficients.tolist(),
        "counts": counts.tolist(),
        "measured_ms": measured.tolist(),
    }
    write_atomic(path, json.dumps(document, indent=1))
    return found


def _parsed(data: Any, features: Features, structure: Structure) -> LatencyModel:
    coefficients = np.array(data["coefficients_ms"], dtype=np.float64)
    wanted, errors = features(structure.sizes).shape, data["held_out_error"]
    if coefficients.shape != wanted or not (
        np.isfinite(coefficients).all() and (coefficients >= 0.0).all()
    ):
        raise ValueError(
            f"it must have {wanted[0]} coefficients from 0 on; it has shape {coefficients.shape}"
        )
    return LatencyModel(features, coefficients, float(errors["mean"]), float(errors["worst"]))


def dense_latency(model: nn.Module, example: Inputs, folder: Path, name: object) -> float:
    """The dense model's measured latency, kept: ratios against it stay the same when a study goes
    on.
    """
    path = folder / f"latency-dense-{digest([name, example.to_json(), here(example.device)])}.json"
    if (stored := kept(path, lambda data: _positive(data["latency_ms"]))) is not None:
        return stored
    found = latency_ms(model, example)
    write_atomic(path, json.dumps({"latency_ms": found}))
    return found


def _positive(value: Any) -> float:
    if not 0.0 < float(value) < float("inf"):
        raise ValueError(f"milliseconds must be above 0; got {value!r}")
    return float(value)


def here(device: torch.device) -> list[object]:
    """What a latency depends on beside the model: the machine, the device, its threads."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return [platform.node(), platform.machine(), kind, torch.get_num_threads()]
