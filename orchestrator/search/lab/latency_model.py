"""Latency estimated from kept counts alone: a linear model fitted to measurements on this device.

The features are products of axis lengths (see `Features`). The coefficients are milliseconds and
not negative, so that a plan that keeps less of everything is never estimated slower.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from torch import nn

from lightning_modules.pruning.cost import Features
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Counts, Structure, some_of
from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.latency.bench import Bench
from orchestrator.stored import read_cache

PLANS = 48
"""Number of plans that are measured."""
HELD_OUT = 12
"""Number of those plans that give the error of the model."""


@dataclass(frozen=True)
class LatencyModel:
    """`coefficients` in ms per feature, of shape (n_features,).

    `mean_error` and `worst_error` are |estimated / measured - 1| of plans that it was not fitted
    to.
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

    The last `held` plans give the error of a model fitted to the others; the model returned is
    fitted to all.
    """
    x = features(counts)
    coefficients = _coefficients(x[:-held], measured[:-held])
    estimated = x[-held:] @ coefficients
    errors = np.abs(estimated / measured[-held:] - 1.0)
    mean = float(errors.mean())
    worst = float(errors.max())
    return LatencyModel(features, _coefficients(x, measured), mean, worst)


def _coefficients(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    coefficients: npt.NDArray[np.float64] = nnls(x / y[:, None], np.ones(len(y)))[0]
    return coefficients


def random_counts(structure: Structure, n_plans: int, seed: int) -> Counts:
    """Plans of all sizes, the dense one first; shape (n_plans, n_groups).

    Each has a level, log-uniform from a twentieth to all, and its groups lie within an octave
    around it.
    """
    generator = np.random.default_rng(seed)
    level = np.exp(generator.uniform(np.log(0.05), 0.0, (n_plans, 1)))
    octaves = generator.uniform(-0.5, 0.5, (n_plans, len(structure.groups)))
    shares = np.minimum(1.0, level * np.exp2(octaves))
    shares[0] = 1.0
    drawn = np.rint(shares * structure.sizes)
    # a whole block goes or stays
    single = structure.sizes == 1
    goes = generator.uniform(size=drawn.shape) < 0.3
    drawn = np.where(single & goes, 0.0, drawn)
    drawn[0] = structure.sizes
    return np.clip(drawn, structure.least, structure.sizes).astype(np.int64)


def pruned(model: nn.Module, structure: Structure, kept: Counts) -> nn.Module:
    """An untrained model of these counts: enough for costs that depend on shapes alone."""
    return remove(model, structure, some_of(structure, kept)).eval()


def latency_model(
    model: nn.Module,
    structure: Structure,
    bench: Bench,
    folder: Path | None,
    name: object,
    tick: Callable[[int, int], None],
) -> LatencyModel:
    """The latency model, measured and fitted once, then read back from `folder` (None: not kept).

    `name` is plain data that says which model it is, and where it is measured. `tick` is called
    with (measurements done, of how many).
    """
    features = Features(structure)
    sizes = [[group.name, group.size] for group in structure.groups]
    key = digest([name, sizes, PLANS])
    path = None if folder is None else folder / f"latency-{key}.json"
    if path is not None:
        stored = read_cache(path, lambda data: _parsed(data, features, structure))
        if stored is not None:
            return stored
    counts = random_counts(structure, PLANS, 0)
    measured = np.zeros(PLANS)
    for index in range(PLANS):
        measured[index] = bench(pruned(model, structure, counts[index])).median
        tick(index + 1, PLANS)
    fitted = fit_latency(features, counts, measured)
    if path is not None:
        error = {"mean": fitted.mean_error, "worst": fitted.worst_error, "plans": HELD_OUT}
        document = {
            "held_out_error": error,
            "coefficients_ms": fitted.coefficients.tolist(),
            "counts": counts.tolist(),
            "measured_ms": measured.tolist(),
        }
        write_atomic(path, json.dumps(document, indent=1))
    return fitted


def _parsed(data: Any, features: Features, structure: Structure) -> LatencyModel:
    coefficients = np.array(data["coefficients_ms"], dtype=np.float64)
    wanted = features(structure.sizes).shape
    errors = data["held_out_error"]
    valid = np.isfinite(coefficients).all() and (coefficients >= 0.0).all()
    if coefficients.shape != wanted or not valid:
        raise ValueError(
            f"it must have {wanted[0]} coefficients from 0 on; it has shape {coefficients.shape}"
        )
    return LatencyModel(features, coefficients, float(errors["mean"]), float(errors["worst"]))
