"""From settings to the laboratory of a study.

Everything here is made once, and cheap checks come before expensive work.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.data.contract import sample_index
from lightning_modules.errors import ConfigError
from lightning_modules.phases.distillation import (
    AttentionTransfer,
    Distillation,
    dense_outputs,
    teacher,
)
from lightning_modules.phases.mixing import Mixing
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.left_whole import left_whole, tensors_to_keep
from lightning_modules.pruning.structure import Structure, prefixed
from lightning_modules.tasks.contract import build_task, divergence_of
from lightning_modules.tasks.metrics import scale_of
from lightning_modules.tasks.whole import Whole, pruned_part
from orchestrator.costs import COSTS
from orchestrator.latency.bench import Bench
from orchestrator.progress import Progress
from orchestrator.search.bounds import check_bounds
from orchestrator.search.costs import MEASURED_COSTS, Costed, Prices, costs_of
from orchestrator.search.goals import goals_of
from orchestrator.search.lab.dense import (
    DenseTraining,
    build_model,
    check_own_optimizer,
    example_of,
    fresh_model,
    rewound_model,
    train_dense,
)
from orchestrator.search.lab.facts import Facts
from orchestrator.search.lab.kernels import choose_memory_format, choose_threads
from orchestrator.search.lab.lab import FinalLab, Lab, SearchData
from orchestrator.search.lab.latencies import architecture, bench_of
from orchestrator.search.lab.latency_model import Estimation, LatencyModel
from orchestrator.search.lab.made_up import MadeUpLab, conditions_of
from orchestrator.search.lab.reload import check_reloads
from orchestrator.search.plans.given import check_plans
from orchestrator.search.samplers import sampler
from orchestrator.search.space.outline import outline
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import Settings
from orchestrator.settings.targets import LATENCY_TARGET


def device_of(settings: Settings) -> torch.device:
    """The device of the settings.

    Errors: ConfigError for a device that torch does not know or this machine does not have.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"device={settings.device} needs CUDA, and torch finds none on this machine; take "
                "device=auto or cpu"
            ) from error
        raise ConfigError(
            f"device must be auto, cpu, cuda or cuda:N of this machine; got '{settings.device}'"
        ) from error
    return device


def prepare(settings: Settings, data: Any, progress: Progress) -> FinalLab:
    """Find the structure, check bounds against it, then train or read the dense baseline."""
    device = device_of(settings)
    if isinstance(settings.threads, int):
        torch.set_num_threads(settings.threads)
    progress.phase("structure", f"what can be pruned in {settings.model_name()}")
    model = build_model(settings, data)
    with progress.timed("structure"):
        example = example_of(settings, model, data)
        structure = find_structure(settings, model, example)
    check_own_optimizer(settings, model, data, device)
    threads = choose_threads(settings, structure, model, data, device)
    if threads:
        progress.phase("threads", threads)
    with progress.timed("profile"):
        memory_format, reason = choose_memory_format(settings, structure, model, data, device)
    if reason:
        progress.phase("memory format", reason)
    example = example.to(device)
    bench = bench_of(settings, model, example, progress)
    latency = _checked(settings, structure, model, bench, example, progress)
    prices = Prices(structure, Cost(structure), example, bench, latency)
    check_bounds(settings, prices, model)
    check_plans(settings, structure, model)
    progress.phase(
        "dense baseline",
        f"{settings.phases.train.epochs} epochs, or read where it was trained before",
    )
    on_epoch = partial(_tell_epoch, settings, progress)
    training = DenseTraining(settings, data, device, progress.timed, on_epoch, memory_format)
    model, metrics = train_dense(training, model)
    facts = _facts(settings, model, prices, metrics)
    lab = _lab(settings, facts, data, device, progress)
    return FinalLab(replace(lab, memory_format=memory_format), data.test_dataloader)


def _checked(
    settings: Settings,
    structure: Structure,
    model: nn.Module,
    bench: Bench,
    example: Inputs,
    progress: Progress,
) -> LatencyModel | None:
    """The latency model, after the checks that cost nothing."""
    check_prunable(settings, structure)
    check_reloads(settings, model, example)
    sampler(settings.sampler, settings.seed, outline(settings, structure, model))
    return find_latency_model(settings, structure, model, bench, progress)


def _tell_epoch(
    settings: Settings, progress: Progress, epoch: int, metrics: dict[str, float]
) -> bool:
    quality = settings.objectives.quality
    progress.tick(f"epoch {epoch}: validation {quality} {metrics[quality]:.4f}")
    return True


def _facts(
    settings: Settings, model: nn.Module, prices: Prices, metrics: dict[str, float]
) -> Facts:
    goals = goals_of(settings)
    return Facts(
        model,
        prices,
        goals,
        metrics,
        scale_of(settings.task, goals.quality, metrics[goals.quality]),
        dense_costs(settings, model, prices),
        rewound_model(settings, model),
        settings.target == LATENCY_TARGET,
    )


def _lab(
    settings: Settings, facts: Facts, data: Any, device: torch.device, progress: Progress
) -> Lab:
    """The laboratory; one that is made up where the settings ask for it."""
    parts: dict[str, Any] = {
        "facts": facts,
        "data": SearchData(data.train_batches, data.val_dataloader),
        "task": lambda model: build_task(settings.task, model, data),
        "phases": settings.phases,
        "device": device,
        "timed": progress.timed,
        "fresh": partial(fresh_model, settings),
        "activations": settings.method.activation,
        "seed": settings.seed,
        "trainer": settings.trainer.for_training(),
        "on_out_of_memory": settings.study.on_out_of_memory,
    }
    if settings.made_up is not None:
        return MadeUpLab(**parts, made_up=conditions_of(settings))
    distillation, mixing = _teaching(settings, facts.model, data, device, progress)
    return Lab(**parts, distillation=distillation, mixing=mixing)


def _teaching(
    settings: Settings, model: nn.Module, data: Any, device: torch.device, progress: Progress
) -> tuple[Distillation | None, Mixing | None]:
    """What the dense model teaches: its outputs.

    It also teaches on copies of the data with samples mixed, where that is possible.
    Errors: ConfigError where mixed copies are asked for and the task's targets are no classes.
    """
    teaching = settings.phases.finetune.distillation
    if teaching is None or not teaching.teaches:
        return None, None
    task = build_task(settings.task, model, data)
    divergence = divergence_of(task)
    if divergence is None:
        progress.phase(
            "distillation", f"none: {type(task).__name__} has no divergence between outputs"
        )
        return None, None
    begin = time.perf_counter()
    index = partial(sample_index, data)
    with progress.timed("evaluation"):
        cached = dense_outputs(task, data.ordered_batches(), index, device)
    features = None
    if teaching.features:
        features = AttentionTransfer(model, teaching.features)
    dense = teacher(model, cached, index)
    distillation = Distillation(dense, divergence, teaching.temperature, teaching.weight, features)
    classifies = getattr(task, "classifies", False)
    if teaching.mixed not in (0, "auto") and not classifies:
        raise ConfigError(
            f"phases.finetune.distillation.mixed={teaching.mixed} mixes samples and their classes; "
            f"{type(task).__name__} does not say `classifies = True`: take mixed=0"
        )
    mixable = cached is None or isinstance(cached, Tensor)
    if teaching.weight == 0.0 or not classifies or not mixable:
        return distillation, None
    seconds = time.perf_counter() - begin
    seed = seed_of(settings.seed, Stream.MIXING)
    return distillation, Mixing(task, data, cached, device, seed, seconds)


def find_latency_model(
    settings: Settings,
    structure: Structure,
    model: nn.Module,
    bench: Bench,
    progress: Progress,
    keep: bool = True,
) -> LatencyModel | None:
    """The latency model, measured or read back; its error is reported.

    None where no target is a latency, and no estimated one is optimised or bounded.
    """
    wanted = settings.objectives.uses("estimated_latency_ms")
    if not wanted and settings.target != LATENCY_TARGET:
        return None
    words = bench.conditions.engine.words
    progress.phase("latency", f"tables of single layers and a few models, measured in {words}")
    with progress.timed("latency model"):
        estimated = Estimation(
            model,
            structure,
            bench,
            architecture(settings),
            settings.method.choices()[0].rounding,
            settings.study.baselines if keep else None,
            progress.tick,
        ).made()
    progress.phase(
        "latency",
        f"plans it has not seen: {estimated.mean_error:.1%} off, {estimated.worst_error:.1%} at "
        f"worst; {estimated.layers.untabled:.0%} of the MACs have no table",
    )
    return estimated


def dense_costs(settings: Settings, model: nn.Module, prices: Prices) -> dict[str, float]:
    """Costs of the dense model that ratios are against.

    They include a measured latency where one is optimised or bounded.
    """
    costed = Costed(prices.structure.sizes, shaped=model, trained=model)
    names = [name for name in COSTS if name not in MEASURED_COSTS]
    costs = costs_of(prices, costed, names)
    if settings.objectives.uses("latency_ms"):
        costs["latency_ms"] = prices.bench.dense_ms
    return costs


def find_structure(settings: Settings, model: nn.Module, example: Inputs) -> Structure:
    """What the method may prune: heads or their width, whole blocks or not.

    Layers that the method keeps, and those that are frozen, are left out.
    Errors: ConfigError where `method.keep` fits nothing.
    """
    method = settings.method.choices()[0]
    structure = discover(
        pruned_part(model), example, attention=method.attention, depth=settings.depth
    )
    if isinstance(model, Whole):
        structure = prefixed(structure, model.prefix)
    kept = tensors_to_keep(model, settings.method.keep, settings.method.prune_frozen)
    return left_whole(structure, kept)


def check_prunable(settings: Settings, structure: Structure) -> None:
    """Errors: ConfigError when nothing can be pruned."""
    granularities = [method.granularity for method in settings.method.choices()]
    if structure.groups or "unit" not in granularities:
        return
    reasons = [f"{skipped.name}: {skipped.reason}" for skipped in structure.skipped[:5]]
    raise ConfigError(
        f"the model must have something to prune; every layer is skipped ({'; '.join(reasons)})"
    )
