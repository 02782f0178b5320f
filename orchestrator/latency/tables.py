"""Tables of the time of single layers, measured once for each shape, engine and machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.latency.bench import LatencyConditions
from orchestrator.latency.engines import ENGINES
from orchestrator.latency.layers import LayerShape, TimedLayer
from orchestrator.latency.timing import cold_ms
from orchestrator.stored import read_cache

Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BLOCK = 8
"""Channels between the first points of a table."""
LEAST_EVICTED = 2**10
MOST_EVICTED = 2**26
"""Bytes that are read before a pass of a layer; more than caches hold say nothing more."""
LEAST_MS = 1e-4
"""What a layer takes at least: a profile counts in whole microseconds."""
TIMED_AS = {"compile": "pytorch", "onnxruntime_int8": "onnxruntime"}
"""Engines that take seconds to make one layer ready, and those whose tables stand in for theirs."""


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a layer at each of `inputs` and `outputs` channels.

    Shapes (n_inputs,), (n_outputs,) and (n_inputs, n_outputs). Times between are interpolated in
    both directions. A layer with fewer channels than the first point takes as long as that one.
    """

    inputs: Ints
    outputs: Ints
    ms: Reals

    def __call__(self, inputs: Reals, outputs: Reals) -> Reals:
        """Shapes (...) and (...); the result has the same."""
        row, next_row, down = _between(self.inputs, inputs)
        column, next_column, right = _between(self.outputs, outputs)
        upper = (1.0 - right) * self.ms[row, column] + right * self.ms[row, next_column]
        lower = (1.0 - right) * self.ms[next_row, column] + right * self.ms[next_row, next_column]
        between: Reals = (1.0 - down) * upper + down * lower
        return between


def _between(points: Ints, at: Reals) -> tuple[Any, Any, Reals]:
    """The indices of the points below and above, and how far between them, in [0, 1]."""
    last = len(points) - 1
    below = np.clip(np.searchsorted(points, at, side="right") - 1, 0, max(0, last - 1))
    above = np.minimum(below + 1, last)
    distance = np.maximum(points[above] - points[below], 1)
    share: Reals = np.clip((at - points[below]) / distance, 0.0, 1.0)
    return below, above, share


def points(size: int, multiple: int) -> list[int]:
    """Channels up to `size` at which a layer is timed.

    They are multiples of 8 up to 32, then two for each octave, and `size` itself. Where widths are
    multiples of 1, or of 16, the first is 1, or they are multiples of 16.
    """
    block = max(BLOCK, multiple)
    found = {min(multiple, size), size}
    at = block
    while at < size:
        found.add(at)
        octave = 2 ** int(np.log2(at / block))
        at += block * max(1, octave // 2)
    return sorted(found)


def monotone(values: Reals) -> Reals:
    """The mean of the nearest values above and below that fall along no axis."""
    above = values
    below = values
    for axis in range(values.ndim):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    mean: Reals = 0.5 * (above + below)
    return mean


@dataclass(frozen=True)
class Tabulation:
    """How tables come about: the `conditions`, the `multiple` of widths, and where they are kept.

    `name` is plain data that says on which machine, and how, layers are timed. A network moves
    through all its weights between two passes of a layer: before each of them, `weights` bytes are
    read. `folder` None: tables are not kept. `tick` is called with (tables, of how many).
    """

    conditions: LatencyConditions
    multiple: int
    weights: int
    name: object
    folder: Path | None
    tick: Callable[[int, int], None]

    def tables(self, layers: Sequence[TimedLayer]) -> dict[str, LatencyTable]:
        """A table for each distinct shape, by its key."""
        alike: dict[str, list[TimedLayer]] = {}
        for layer in layers:
            alike.setdefault(layer.shape.key, []).append(layer)
        tables = {}
        for key, members in alike.items():
            inputs = self._axis([layer.inputs for layer in members])
            outputs = self._axis([layer.outputs for layer in members])
            tables[key] = self._table(members[0].shape, inputs, outputs)
            self.tick(len(tables), len(alike))
        return tables

    def _axis(self, channels: Sequence[npt.NDArray[np.int32]]) -> list[int]:
        """The points that layers of one shape need together."""
        sizes = set()
        largest = 0
        for units in channels:
            sizes.add(len(units))
            if (units >= 0).any():
                largest = max(largest, len(units))
        between = points(largest, self.multiple) if largest else []
        return sorted(sizes | set(between))

    def _table(self, shape: LayerShape, inputs: list[int], outputs: list[int]) -> LatencyTable:
        """Read back, or measured and kept."""
        path = None
        if self.folder is not None:
            key = digest([self.name, len(self._elsewhere), shape.to_json(), inputs, outputs])
            path = self.folder / f"latency-layer-{key}.json"
            stored = read_cache(path, lambda data: _parsed(data, inputs, outputs))
            if stored is not None:
                return stored
        measured = np.zeros((len(inputs), len(outputs)))
        for row, column in product(range(len(inputs)), range(len(outputs))):
            alone = self._milliseconds(shape, inputs[row], outputs[column])
            measured[row, column] = max(alone, LEAST_MS)
        if path is not None:
            document = {"shape": shape.to_json(), "inputs": inputs, "outputs": outputs}
            write_atomic(path, json.dumps({**document, "ms": measured.tolist()}, indent=1))
        return _of(measured, inputs, outputs)

    def _milliseconds(self, shape: LayerShape, inputs: int, outputs: int) -> float:
        layer, example = shape.layer(inputs, outputs)
        example = example.to(self.conditions.example.device)
        engine = self.conditions.engine
        if engine.name in TIMED_AS:
            engine = ENGINES[TIMED_AS[engine.name]]
        if engine.kernels is not None:
            return engine.kernels(layer, example, self.conditions.threads, self._elsewhere.sum)
        run = engine.prepare(layer, example, self.conditions.threads)
        return cold_ms(run, self._elsewhere.sum)

    @cached_property
    def _elsewhere(self) -> npt.NDArray[np.uint64]:
        """As many bytes as a network of this size has elsewhere, to a power of two."""
        least = np.clip(self.weights, LEAST_EVICTED, MOST_EVICTED)
        size = 2 ** int(np.ceil(np.log2(least)))
        return np.ones(size // 8, dtype=np.uint64)


def _of(measured: Reals, inputs: Sequence[int], outputs: Sequence[int]) -> LatencyTable:
    return LatencyTable(np.array(inputs), np.array(outputs), monotone(measured))


def _parsed(data: Any, inputs: Sequence[int], outputs: Sequence[int]) -> LatencyTable:
    measured = np.array(data["ms"], dtype=np.float64)
    wanted = (len(inputs), len(outputs))
    if measured.shape != wanted or not np.isfinite(measured).all() or (measured <= 0.0).any():
        raise ValueError(f"it must have {wanted} times above 0; it has shape {measured.shape}")
    return _of(measured, inputs, outputs)
