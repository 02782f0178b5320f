"""Look before paying: what would be pruned, and how large and long the search is.

It also shows what is skipped and why.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lightning_modules.data.contract import ready_data
from lightning_modules.pruning.cost import Cost, prunable_macs_fraction
from lightning_modules.pruning.structure import Structure
from orchestrator.progress import Progress
from orchestrator.report.tables import show, summary_table
from orchestrator.results.quantities import count, duration, flops, percent
from orchestrator.search.bounds import check_bounds
from orchestrator.search.costs import Prices
from orchestrator.search.lab.dense import build_model, example_of
from orchestrator.search.lab.expected import expected_seconds
from orchestrator.search.lab.latencies import bench_of
from orchestrator.search.lab.prepare import (
    check_prunable,
    device_of,
    find_latency_model,
    find_structure,
)
from orchestrator.search.lab.reload import check_reloads
from orchestrator.search.parts import check_parts
from orchestrator.search.samplers import combinations, sampler
from orchestrator.search.space.outline import on_weights, outline
from orchestrator.settings import MethodSettings, Settings, within_reach


@dataclass(frozen=True)
class Inspection:
    """What a search would work on.

    `least_ratio` is the FLOPs ratio with as few units of every group as a plan keeps. `weights` are
    the tensors whose single weights the method prunes, None where it prunes units
    alone. `combinations` is how many plans a discrete space has, None where a dimension is
    continuous. `seconds` is the expected duration of the whole job by phase, from a few timed steps
    on this machine.
    """

    structure: Structure
    weights: Structure | None
    macs: int
    params: int
    prunable_macs_fraction: float
    least_ratio: float
    dimensions: int
    combinations: int | None
    seconds: dict[str, float]

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
    example = example.to(device_of(settings))
    bench = bench_of(settings, model, example, Progress(), keep=False)
    latency = find_latency_model(settings, structure, model, bench, Progress(), keep=False)
    check_bounds(settings, Prices(structure, cost, example, bench, latency), model)
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
        len(distributions),
        combinations(distributions),
        expected_seconds(settings, model, data, structure, device_of(settings), begun),
    )
    _print(settings, inspection)
    return inspection


def _weights(structure: Structure, model: nn.Module, method: MethodSettings) -> Structure | None:
    """The weight tensors of the first stage that prunes single weights."""
    for stage in method.stages():
        weights = on_weights(structure, model, stage)
        if weights:
            return weights
    return None


def _print(settings: Settings, inspection: Inspection) -> None:
    if settings.method.choices()[0].granularity == "unit":
        _print_groups(settings.model_name(), inspection.structure)
    if inspection.weights is not None:
        _print_tensors(settings.model_name(), inspection.weights)
    _print_summary(settings, inspection)


def _print_groups(model: str, structure: Structure) -> None:
    from rich.table import Table

    table = Table(
        title=f"{model}: groups of units that live and die together", title_justify="left"
    )
    for header in ("group", "units", "kind", "layers", "masked = removed"):
        justify: Literal["left", "right"] = "right" if header in ("units", "layers") else "left"
        table.add_column(header, justify=justify, no_wrap=True)
    for group in structure.groups:
        layers = {member.tensor.rpartition(".")[0] for member in group.members}
        exact = "yes" if group.mask_exact else "no"
        table.add_row(group.name, str(group.size), group.kind, str(len(layers)), exact)
    show(table)


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
        table.add_row(group.name, str(group.size), group.kind)
    for skipped in weights.skipped:
        table.add_row(skipped.name, "0", f"skipped: {skipped.reason}")
    show(table)


def _print_summary(settings: Settings, inspection: Inspection) -> None:
    structure = inspection.structure
    dense_flops = flops(2 * inspection.macs)
    layers = f"{structure.prunable_layers} of {structure.layers} layers"
    prunable = percent(inspection.prunable_macs_fraction)
    lines = [
        ("found by", structure.source),
        ("groups, units", f"{len(structure.groups)}, {structure.n_units}"),
        ("dense FLOPs", f"{dense_flops} ({count(inspection.macs)} MACs), batch 1"),
        ("dense params", count(inspection.params)),
        ("prunable", f"{layers}, {prunable} of the MACs"),
        ("smallest reachable", f"{percent(inspection.least_ratio)} of the FLOPs"),
    ]
    lines += _moved_targets(settings, inspection.least_ratio)
    skipped: dict[str, list[str]] = {}
    for layer in structure.skipped:
        skipped.setdefault(layer.reason, []).append(layer.name)
    for reason, names in skipped.items():
        lines.append((f"skipped: {reason}", ", ".join(names)))
    trials = f"{inspection.dimensions}, {settings.study.n_trials} trials"
    lines.append(("search dimensions", trials))
    if inspection.combinations is not None:
        lines.append(("combinations", str(inspection.combinations)))
    lines.append(("expected duration", duration(inspection.total_seconds)))
    for name, seconds in inspection.seconds.items():
        lines.append((f"  {name}", duration(seconds)))
    show(summary_table("what the search works on", lines))
