"""Look before paying: what would be pruned, and how large and long the search is.

It also shows what is skipped and why.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_modules.data.contract import ready_data
from lightning_modules.pruning.cost import Cost, prunable_macs_fraction
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Structure
from orchestrator.progress import Progress
from orchestrator.report.structure import (
    INSPECT_WIDTH,
    groups_table,
    inexact,
    not_prunable,
    shortened,
)
from orchestrator.report.tables import show, summary_table
from orchestrator.results.quantities import count, duration, flops, free_in_words, percent
from orchestrator.search.bounds import check_bounds
from orchestrator.search.costs import Prices
from orchestrator.search.lab.dense import RECORD, build_model, dense_folder, example_of
from orchestrator.search.lab.expected import expected_seconds
from orchestrator.search.lab.latencies import bench_of
from orchestrator.search.lab.prepare import (
    check_prunable,
    device_of,
    find_latency_model,
    find_structure,
    prepare,
)
from orchestrator.search.lab.reload import check_reloads
from orchestrator.search.parts import check_parts
from orchestrator.search.samplers import combinations, sampler
from orchestrator.search.space.outline import on_weights, outline
from orchestrator.search.trials.methods import prepare_method, scores_are_errors
from orchestrator.settings import MethodSettings, Settings, within_reach


@dataclass(frozen=True)
class Inspection:
    """What a search would work on.

    `least_ratio` and `least_params_ratio` are the ratios of FLOPs and parameters with as few units
    of every group as a plan keeps. `weights` are the tensors whose single weights the method
    prunes, None where it prunes units alone. `combinations` is how many plans a discrete space has,
    None where a dimension is continuous. `seconds` is the expected duration of the whole job by
    phase, from a few timed steps on this machine. `free` is the share of each group's units that
    the others can stand in for, None where that is not known.
    """

    structure: Structure
    weights: Structure | None
    macs: int
    params: int
    prunable_macs_fraction: float
    least_ratio: float
    least_params_ratio: float
    dimensions: int
    combinations: int | None
    seconds: dict[str, float]
    free: dict[str, float] | None = None

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def inspect(settings: Settings, imports: float = 0.0) -> Inspection:
    """Print and return what `job=search` would work on.

    Nothing that is trained is kept, and nothing is written. `imports` are the seconds that the
    imports took, which a search needs as well. Errors: UserError for whatever would stop the search
    before its first trial.
    """
    begin = time.perf_counter()
    check_parts(settings)
    if isinstance(settings.threads, int):
        torch.set_num_threads(settings.threads)
    data = ready_data(settings.data)
    model = build_model(settings, data)
    example = example_of(settings, model, data)
    structure = find_structure(settings, model, example)
    begun = imports + time.perf_counter() - begin
    cost = Cost(structure)
    check_prunable(settings, structure)
    check_reloads(settings, model, example)
    _check_bounds(settings, structure, model, example.to(device_of(settings)))
    macs = cost.macs(structure.sizes)
    distributions = outline(settings, structure, model)
    sampler(settings.sampler, settings.seed, distributions)
    inspection = Inspection(
        structure,
        _weights(structure, model, settings.method.choices()[0]),
        macs,
        cost.params(structure.sizes),
        prunable_macs_fraction(structure),
        cost.macs(structure.least) / macs,
        cost.params(structure.least) / cost.params(structure.sizes),
        len(distributions),
        combinations(distributions),
        expected_seconds(settings, model, data, structure, device_of(settings), begun),
        _free(settings, data),
    )
    _print(settings, inspection)
    return inspection


def _check_bounds(
    settings: Settings, structure: Structure, model: nn.Module, example: Inputs
) -> None:
    """Errors: ConfigError for bounds that no plan meets."""
    progress = Progress(quiet=settings.quiet)
    bench = bench_of(settings, model, example, progress, keep=False)
    latency = None
    if settings.objectives.bounded("estimated_latency_ms"):
        latency = find_latency_model(settings, structure, model, bench, progress, keep=False)
    check_bounds(settings, Prices(structure, Cost(structure), example, bench, latency), model)


def _weights(structure: Structure, model: nn.Module, method: MethodSettings) -> Structure | None:
    """The weight tensors of the first stage that prunes single weights."""
    for stage in method.stages():
        weights = on_weights(structure, model, stage)
        if weights:
            return weights
    return None


def _print(settings: Settings, inspection: Inspection) -> None:
    if settings.method.choices()[0].granularity == "unit":
        groups = groups_table(settings.model_name(), inspection.structure, inspection.free)
        show(groups, width=INSPECT_WIDTH)
    if inspection.weights is not None:
        _print_tensors(settings.model_name(), inspection.weights)
    _print_summary(settings, inspection)


def _moved_targets(settings: Settings, least: float) -> list[tuple[str, str]]:
    """A line on the chain where it is laid out above what can be reached."""
    chain = settings.search.chain
    if chain.smallest >= least:
        return []
    low, high = within_reach(chain.smallest, chain.largest, least)
    return [("targets", f"from {percent(high)} to {percent(low)}, above what can be reached")]


def _print_tensors(model: str, weights: Structure) -> None:
    from rich.table import Table

    table = Table(title=f"{model}: tensors in which weights are set to zero", title_justify="left")
    for header in ("tensor", "units", "kind"):
        table.add_column(header, justify="right" if header == "units" else "left", no_wrap=True)
    for group in weights.groups:
        table.add_row(shortened(group.name, 48), str(group.size), group.kind)
    show(table, width=INSPECT_WIDTH)


def _print_summary(settings: Settings, inspection: Inspection) -> None:
    structure = inspection.structure
    dense_flops = flops(2 * inspection.macs)
    layers = f"{structure.prunable_layers} of {structure.layers} layers"
    prunable = percent(inspection.prunable_macs_fraction)
    best = f"{percent(inspection.least_ratio)} of the FLOPs"
    lines = [
        ("found by", structure.source),
        ("groups, units", f"{len(structure.groups)}, {structure.n_units}"),
        ("dense FLOPs", f"{dense_flops} ({count(inspection.macs)} MACs), batch 1"),
        ("dense params", count(inspection.params)),
        ("prunable", f"{layers}, {prunable} of the MACs"),
        ("best case", f"{best}, {percent(inspection.least_params_ratio)} of the params"),
        *_moved_targets(settings, inspection.least_ratio),
        *not_prunable(structure),
        *inexact(structure.groups),
        *_free_to_go(settings, inspection.free),
        ("search dimensions", f"{inspection.dimensions}, {settings.study.n_trials} trials"),
    ]
    if inspection.weights is not None:
        lines += not_prunable(inspection.weights)
    if inspection.combinations is not None:
        lines.append(("combinations", str(inspection.combinations)))
    lines.append(("expected duration", duration(inspection.total_seconds)))
    for name, seconds in inspection.seconds.items():
        lines.append((f"  {name}", duration(seconds)))
    show(summary_table("what the search works on", lines), width=INSPECT_WIDTH)


def _free_to_go(settings: Settings, free: Mapping[str, float] | None) -> list[tuple[str, str]]:
    """What is known of units that others can stand in for, where the method knows such a thing."""
    if not scores_are_errors(settings.method.choices()[0].scoring().build()):
        return []
    if free is None:
        return [("free to go", "known once the dense model is trained; give the command again")]
    return [("free to go", free_in_words(free))]


def _free(settings: Settings, data: Any) -> dict[str, float] | None:
    """The share of each group's units that the others can stand in for.

    None where the method does not know it, or the dense model is still to be trained.
    """
    method = settings.method.choices()[0]
    if not scores_are_errors(method.scoring().build()):
        return None
    if not (dense_folder(settings) / RECORD).exists():
        return None
    lab = prepare(settings, data, Progress(quiet=True)).lab
    return prepare_method(lab, method).stages[0].free()
