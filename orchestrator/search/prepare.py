"""From settings to the problem of a study: everything that is made once, cheap checks before expensive work."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.phases.distillation import AttentionTransfer, Distillation, dense_outputs, teacher
from lightning_modules.phases.mixing import Mixing
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.structure import Structure
from orchestrator.progress import Progress
from orchestrator.search.bounds import check_bounds, size_mb
from orchestrator.search.dense import build_model, rewound_model, train_dense
from orchestrator.search.given import check_plans
from orchestrator.search.kernels import choose_memory_format, choose_threads
from orchestrator.search.latency_model import LatencyModel, dense_latency, latency_model
from orchestrator.search.outline import outline
from orchestrator.search.problem import Problem, example_input, seed_of
from orchestrator.search.samplers import sampler
from orchestrator.settings import Settings


def device_of(settings: Settings) -> torch.device:
    """Errors: ConfigError for a device that torch does not know or this machine does not have."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"device={settings.device} needs CUDA, and torch finds none on this machine; take device=auto or cpu"
            ) from error
        raise ConfigError(
            f"device must be auto, cpu, cuda or cuda:N of this machine; got '{settings.device}'"
        ) from error
    return device


def prepare(settings: Settings, data: Any, progress: Progress) -> Problem:
    """Find the structure, check budgets against it, then train or read the dense baseline."""
    device = device_of(settings)
    if isinstance(settings.threads, int):
        torch.set_num_threads(settings.threads)
    progress.phase("structure", f"what can be pruned in {settings.model.target.rpartition('.')[2]}")
    model = build_model(settings, data)
    with progress.timed("structure"):
        structure = find_structure(settings, model, data)
    if found := choose_threads(settings, structure, model, data, device):
        progress.phase("threads", found)
    with progress.timed("profile"):
        memory_format, found = choose_memory_format(settings, structure, model, data, device)
    if found:
        progress.phase("memory format", found)
    cost = Cost(structure)
    check_budgets(settings, structure, cost)
    sampler(settings.sampler, settings.seed, outline(settings, structure, model))
    example = example_input(data).to(device)
    latency = find_latency_model(settings, structure, model, example, progress)
    check_bounds(settings, structure, model, example, latency)
    check_plans(settings, structure, model)
    progress.phase("dense baseline", f"{settings.phases.train.epochs} epochs, or read where it was trained before")

    def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
        quality = metrics[settings.objectives.quality]
        progress.tick(f"epoch {epoch}: validation {settings.objectives.quality} {quality:.4f}")
        return True

    model, metrics = train_dense(settings, model, data, device, progress.timed, on_epoch, memory_format)
    distillation = mixing = None
    if (how := settings.phases.finetune.distillation) is not None and (how.weight > 0.0 or how.features):
        begin = time.perf_counter()
        with progress.timed("evaluation"):
            cached = dense_outputs(model, data.ordered_batches(), device)
        features = AttentionTransfer(model, how.features, how.feature_weight) if how.features else None
        distillation = Distillation(teacher(model, cached), how.temperature, how.weight, features)
        if how.weight > 0.0:
            seconds = time.perf_counter() - begin
            mixing = Mixing(model, data, cached, device, seed_of(settings.seed, 6), seconds)
    rewound = rewound_model(settings, model)
    costs = dense_costs(settings, model, structure, example, latency)
    return Problem(
        settings,
        model,
        data,
        structure,
        cost,
        metrics,
        distillation,
        device,
        progress.timed,
        rewound,
        costs,
        latency,
        mixing=mixing,
        memory_format=memory_format,
    )


def find_latency_model(
    settings: Settings, structure: Structure, model: nn.Module, example: Tensor, progress: Progress, keep: bool = True
) -> LatencyModel | None:
    """Fitted, or read back, where an estimated latency is optimised or bounded; its error is told."""
    if not settings.objectives.uses("estimated_latency_ms"):
        return None
    progress.phase("latency", "a linear model of it, from random plans measured on this device")
    with progress.timed("latency model"):
        found = latency_model(
            model,
            structure,
            example,
            settings.study.baselines if keep else None,
            _architecture(settings),
            lambda done, of: progress.tick(f"{done} of {of} measurements"),
        )
    progress.phase("latency", f"plans it has not seen: {found.mean_error:.1%} off, {found.worst_error:.1%} at worst")
    return found


def dense_costs(
    settings: Settings, model: nn.Module, structure: Structure, example: Tensor, latency: LatencyModel | None
) -> dict[str, float]:
    """Costs of the dense model that ratios are against; a measured latency where one is optimised."""
    cost = Cost(structure)
    flops = 2.0 * cost.macs(structure.sizes)
    found = {
        "flops": flops,
        "effective_flops": flops,
        "params": float(cost.params(structure.sizes)),
        "nonzero_params": float(sum(int((p != 0).sum()) for p in model.parameters())),
        "size_mb": size_mb(model),
    }
    if latency is not None:
        found["estimated_latency_ms"] = latency(structure.sizes)
    if "latency_ms" in settings.objectives.costs:
        found["latency_ms"] = dense_latency(model, example, settings.study.baselines, _architecture(settings))
    return found


def _architecture(settings: Settings) -> dict[str, Any]:
    """What a latency depends on: not the weights."""
    return settings.model.without("weights", "pretrained").to_json()


def find_structure(settings: Settings, model: nn.Module, data: Any) -> Structure:
    """What the method may prune: heads or their width, whole blocks or not."""
    method = settings.method.choices()[0]
    return discover(model, (example_input(data),), attention=method.attention, depth=settings.depth)


def check_budgets(settings: Settings, structure: Structure, cost: Cost) -> None:
    """Errors: ConfigError when nothing can be pruned, or when even one unit per group is over a budget."""
    single = all(method.granularity != "unit" for method in settings.method.choices())
    if not structure.groups and not single:
        reasons = "; ".join(f"{skipped.name}: {skipped.reason}" for skipped in structure.skipped[:5])
        raise ConfigError(f"the model must have something to prune; every layer is skipped ({reasons})")
    least = structure.least
    bounds = settings.objectives
    for name, bound, count in (
        ("flops", bounds.max_flops_ratio, cost.macs),
        ("params", bounds.max_params_ratio, cost.params),
    ):
        ratio = count(least) / count(structure.sizes)
        if bound is not None and ratio > bound:
            raise ConfigError(
                f"objectives.max_{name}_ratio must be at least {ratio:.4f} (one unit per group); got {bound:g}"
            )
