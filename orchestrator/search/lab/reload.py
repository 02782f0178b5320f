"""Whether models can be loaded again: the architecture built anew must compute the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.inputs import Inputs, run
from lightning_modules.pruning.removal import rebuild
from orchestrator.search.plans.lineage import tensors
from orchestrator.settings import Settings

SAME_OUTPUT = 1e-4
"""Largest difference between outputs, relative to the largest output."""


def check_reloads(settings: Settings, model: nn.Module, example: Inputs) -> None:
    """Build the architecture with other random numbers, give it the weights, and run both.

    Exported models are loaded in that way.
    Errors: ConfigError where that fails or the outputs differ.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(settings.seed + 1)
            architecture = settings.model.without("weights", "pretrained").build()
            twin = rebuild(architecture, tensors(model))
            found = apart(twin, model, example.to(torch.device("cpu")))
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            line = (str(error).splitlines() or ["no message"])[0][:160]
            found = f"{type(error).__name__}: {line}"
    if found is not None:
        raise ConfigError(
            "the model must be the same network each time it is built, since exported models are "
            f"loaded into it; built anew and given the same weights: {found}; give layers their "
            "sizes in the constructor (no Lazy modules), and keep what varies in buffers"
        )


def apart(left: nn.Module, right: nn.Module, inputs: Inputs) -> str | None:
    """How two models differ in eval mode on random inputs like these; None if they do not."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=generator).to(x.device, x.dtype)

    noisy = inputs.map(noise)
    outputs = []
    for model in (left, right):
        torch.manual_seed(0)
        leaves = pytree.tree_leaves(run(copy_of(model).to(noisy.device), noisy))
        outputs.append([leaf for leaf in leaves if isinstance(leaf, Tensor)])
    for one, other in zip(*outputs, strict=True):
        if one.shape != other.shape:
            return f"an output has shape {list(one.shape)} instead of {list(other.shape)}"
        if not other.is_floating_point() or not other.numel():
            continue
        largest = other.abs().max().item()
        difference = (one - other).abs().max().item()
        if difference > SAME_OUTPUT * largest:
            return f"outputs differ by {difference:.2g}, where the largest is {largest:.2g}"
    return None
