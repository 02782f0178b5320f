"""Latency estimated from kept counts alone: tables of single layers, and a curve through models.

The tables say how the time of a layer goes with its channels. What a layer takes alone is not what
it takes in a network: caches are others, and steps between layers are merged or added. So a few
networks of equal ratios are measured, and their times stand on a curve over the sums of their
layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from lightning_modules.pruning.cost import Cost, Lengths
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Counts, Structure, some_of
from lightning_modules.pruning.thresholds import rounded
from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.latency.bench import Bench
from orchestrator.latency.layers import TimedLayer, layers_of
from orchestrator.latency.tables import TIMED_AS, LatencyTable, Reals, Tabulation, monotone
from orchestrator.search.lab.latencies import machine, under
from orchestrator.search.space.allocation import evenly
from orchestrator.stored import read_cache

CURVE = (0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.06)
"""FLOPs ratios of the models of equal ratios that are measured, beside the two ends."""
HELD_OUT = 8
"""Number of random plans that give the error of the estimate."""
MS_PER_MAC = 1e-7
"""What a MAC counts where no layer has a table: any number does, as the curve corrects it."""


class LayerSum:
    """Milliseconds of all layers of a plan, each alone.

    MACs of nodes without a table count at the mean rate of the dense layers that have one.
    `untabled` is the share of the dense MACs in such nodes.
    """

    def __init__(
        self, structure: Structure, layers: Sequence[TimedLayer], tables: Mapping[str, LatencyTable]
    ) -> None:
        axes: list[npt.NDArray[np.int32]] = []
        for layer in layers:
            axes += [layer.inputs, layer.outputs]
        self._lengths = Lengths(structure, axes)
        self._blocks = []
        for index, layer in enumerate(layers):
            if layer.blocks:
                self._blocks.append((index, Lengths(structure, layer.blocks)))
        self._places = [
            (table, [index for index, layer in enumerate(layers) if layer.shape.key == key])
            for key, table in tables.items()
        ]
        self._n_layers = len(layers)
        tabled = {layer.weight for layer in layers}
        rest = [product for product in structure.macs if product.tensor not in tabled]
        self._rest = Cost(replace(structure, macs=tuple(rest)))
        dense = structure.sizes
        untabled = self._rest.macs(dense)
        whole = Cost(structure).macs(dense)
        self.untabled = untabled / whole
        self._rate = MS_PER_MAC
        if untabled < whole:
            self._rate = float(self._tabled(dense)) / (whole - untabled)

    def __call__(self, counts: Counts) -> Reals:
        """Counts of shape (..., n_groups) give times of shape (...)."""
        total: Reals = self._tabled(counts) + self._rate * self._rest.macs_batch(counts)
        return total

    def nanoseconds(self, counts: Counts) -> npt.NDArray[np.int64]:
        """As a call, in whole nanoseconds."""
        return np.rint(1e6 * self(counts)).astype(np.int64)

    def _tabled(self, counts: Counts) -> Reals:
        lengths = self._lengths(counts).astype(np.float64)
        times = np.zeros((*counts.shape[:-1], self._n_layers))
        for table, places in self._places:
            inputs = lengths[..., [2 * place for place in places]]
            outputs = lengths[..., [2 * place + 1 for place in places]]
            times[..., places] = table(inputs, outputs)
        for place, blocks in self._blocks:
            times[..., place] *= blocks(counts).prod(-1)
        total: Reals = times.sum(-1)
        return total


@dataclass(frozen=True)
class LatencyModel:
    """The milliseconds of plans: the curve (`sums`, `ms`) at the sum of their layers.

    `sums` rise and `ms` do not fall; both have shape (n_models,). The last point is the dense
    model. `mean_error` and `worst_error` are |estimated / measured - 1| of random plans that are
    not on the curve.
    """

    layers: LayerSum
    sums: Reals
    ms: Reals
    mean_error: float
    worst_error: float

    def __call__(self, counts: Counts) -> float:
        """Milliseconds of a pass; `counts` has shape (n_groups,)."""
        return float(self.many(counts))

    def many(self, counts: Counts) -> Reals:
        """Counts of shape (..., n_groups) give milliseconds of shape (...)."""
        at = np.log(np.maximum(self.layers(counts), 1e-12))
        estimated: Reals = np.exp(np.interp(at, np.log(self.sums), np.log(self.ms)))
        return estimated

    def nanoseconds(self, counts: Counts) -> int:
        """As a call, in whole nanoseconds."""
        return round(1e6 * self(counts))


@dataclass(frozen=True)
class Estimation:
    """What a latency model is made from and for.

    `name` is plain data that says which network it is. Widths of plans are in multiples of
    `multiple`. `folder` None: nothing is kept. `tick` is called with what was done.
    """

    model: nn.Module
    structure: Structure
    bench: Bench
    name: object
    multiple: int
    folder: Path | None
    tick: Callable[[str], None]

    def made(self) -> LatencyModel:
        """The latency model, measured once, then read back."""
        conditions = self.bench.conditions
        engine = conditions.engine.name
        tabulation = Tabulation(
            conditions,
            self.multiple,
            sum([weight.nbytes for weight in self.model.parameters()]),
            [*machine(conditions), TIMED_AS.get(engine, engine)],
            self.folder,
            lambda done, of: self.tick(f"{done} of {of} tables of layers"),
        )
        layers = layers_of(self.model, self.structure, conditions.example)
        layer_sum = LayerSum(self.structure, layers, tabulation.tables(layers))
        return self._fitted(layer_sum)

    def _fitted(self, layer_sum: LayerSum) -> LatencyModel:
        models = self._on_curve()
        plans = np.concatenate([models, self._random()])
        measured = self._measured(plans)
        # whatever was kept of the dense model, ratios are against its one latency
        measured[0] = self.bench.dense_ms
        sums, ms = curve(layer_sum(models), measured[: len(models)])
        fitted = LatencyModel(layer_sum, sums, ms, math.nan, math.nan)
        errors = np.abs(fitted.many(plans[len(models) :]) / measured[len(models) :] - 1.0)
        return replace(fitted, mean_error=float(errors.mean()), worst_error=float(errors.max()))

    def _on_curve(self) -> Counts:
        """The dense model, models of equal ratios, and the smallest one; (n_models, n_groups).

        Ratios that round to the same widths are one model.
        """
        plans = [self.structure.sizes]
        for ratio in CURVE:
            plans.append(evenly(self.structure, ratio, self.multiple))
        plans.append(rounded(self.structure, self.structure.least, self.multiple))
        distinct = dict.fromkeys([tuple(kept) for kept in plans])
        return np.array(list(distinct))

    def _random(self) -> Counts:
        drawn = random_counts(self.structure, HELD_OUT + 1, 0)[1:]
        return np.array([rounded(self.structure, kept, self.multiple) for kept in drawn])

    def _measured(self, plans: Counts) -> Reals:
        """Milliseconds of each plan beside the dense one, read back or measured and kept."""
        path = None
        if self.folder is not None:
            key = digest([self.name, under(self.bench.conditions), plans.tolist()])
            path = self.folder / f"latency-models-{key}.json"
            stored = read_cache(path, lambda data: _parsed(data, len(plans)))
            if stored is not None:
                return stored
        measured = np.zeros(len(plans))
        for index, kept in enumerate(plans):
            measured[index] = self.bench(pruned(self.model, self.structure, kept)).median
            self.tick(f"{index + 1} of {len(plans)} models")
        if path is not None:
            document = {"counts": plans.tolist(), "measured_ms": measured.tolist()}
            write_atomic(path, json.dumps(document, indent=1))
        return measured


def curve(sums: Reals, measured: Reals) -> tuple[Reals, Reals]:
    """A rising curve through models, the dense one first; as `LatencyModel` has it.

    It goes through the dense model, and for others through the mean of the nearest rising values.
    """
    order = np.argsort(sums, kind="stable")
    ms = np.minimum(monotone(measured[order]), measured[0])
    ms[order == 0] = measured[0]
    rising, first = np.unique(sums[order], return_index=True)
    last = np.append(first[1:], len(ms)) - 1
    return rising, ms[last]


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


def _parsed(data: Any, n_plans: int) -> Reals:
    measured = np.array(data["measured_ms"], dtype=np.float64)
    if measured.shape != (n_plans,) or not (measured > 0.0).all():
        raise ValueError(f"it must have {n_plans} times above 0; it has shape {measured.shape}")
    return measured
