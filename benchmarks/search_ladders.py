"""What an expert does by hand with torch-pruning: its magnitude pruner at each FLOPs target,
finetuned by our loop.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lightning_modules.pruning.inputs import Inputs, run
from orchestrator.search.lab.lab import Lab, Training
from orchestrator.search.pace.pacing import measure
from orchestrator.search.space.allocation import evenly
from orchestrator.seeds import seed_of

Found = tuple[float, float, nn.Module]
"""FLOPs ratio, validation accuracy, model."""


def ladder(
    lab: Lab, targets: Sequence[float], whole: bool, budget: float, seed: int, begin: float
) -> Iterator[Found]:
    """A model for each target, all from the dense one, with equal steps for each; `whole`: one
    global ranking.
    """
    cuts = [evenly(lab.facts.structure, targets[at]) for at in (len(targets) // 2, -1)]
    speed = measure(lab, cuts, time.process_time)
    for place, target in enumerate(targets):
        rest = targets[place:]
        left = budget - (time.process_time() - begin) - sum(map(speed.beside_at, rest))
        model = pruned(lab, target, whole)
        lab.recalibrate(model, lab.phases.finetune.recalibration_batches, seed)
        steps = max(1, int(left / sum(map(speed.step_at, rest))))
        lab.finetune(model, Training(1, seed_of(seed, 7, place), round_steps=steps))
        model.eval()
        yield macs(lab, model), lab.validate(model)["accuracy"], model


def pruned(lab: Lab, target: float, whole: bool) -> nn.Module:
    """The dense model cut by torch-pruning to at most `target` of our MACs, by bisection over its
    pruning ratio.
    """
    import torch_pruning as tp

    example = lab.facts.example.args[0]
    classifier = [module for module in lab.facts.model.modules() if isinstance(module, nn.Linear)][
        -1
    ]
    name = next(name for name, module in lab.facts.model.named_modules() if module is classifier)

    def at(ratio: float) -> nn.Module:
        model = copy.deepcopy(lab.facts.model).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=whole,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95 if whole else 1.0,
            ignored_layers=[model.get_submodule(name)],
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        pruner.step()
        return model

    low, high = 0.0, 0.99
    for _ in range(7):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if macs(lab, at(middle)) <= target else (middle, high)
    return at(high)


def macs(lab: Lab, model: nn.Module) -> float:
    """MACs of convolutions and linear layers against the dense model's, counted alike for all, by
    hooks.
    """
    return counted(model, lab.facts.example) / counted(lab.facts.model, lab.facts.example)


def counted(model: nn.Module, example: Inputs) -> int:
    total = 0

    def conv(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        places = output.shape[-1] * output.shape[-2] if output.dim() == 4 else 1
        total += weight.numel() * places

    kinds = (nn.Conv2d, nn.Linear)
    handles = [
        module.register_forward_hook(conv)
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    run(model, example)
    for handle in handles:
        handle.remove()
    return total
