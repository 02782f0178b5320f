"""Distillation from the dense model's outputs (Hinton et al. 2015, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import nearest

Teacher = Callable[[Any], Tensor]
"""From a batch to the dense model's logits, shape (N, classes)."""


@dataclass(frozen=True)
class Distillation:
    """(1 - weight) x loss + weight x T^2 x KL(teacher || student), both softened by the temperature T.

    `features` adds what the maps inside the two models are apart.
    """

    teacher: Teacher
    temperature: float = 3.0
    weight: float = 0.5
    features: AttentionTransfer | None = None

    def __call__(self, loss: Tensor, logits: Tensor, batch: Any) -> Tensor:
        if self.weight > 0.0:
            loss = (1.0 - self.weight) * loss + self.weight * self.divergence(logits, self.teacher(batch))
        return loss if self.features is None else loss + self.features(batch)

    def divergence(self, logits: Tensor, wanted: Tensor) -> Tensor:
        t = self.temperature
        soft, target = F.log_softmax(logits / t, 1), F.log_softmax(wanted / t, 1)
        return t * t * F.kl_div(soft, target, reduction="batchmean", log_target=True)


@torch.no_grad()
def dense_outputs(model: nn.Module, batches: Iterable[Any], device: torch.device) -> Tensor | None:
    """Logits of every training sample by its index, shape (n, classes); None where samples are not the same twice."""
    model = model.to(device).eval()
    parts, places = [], []
    for batch in batches:
        if len(batch) < 3:
            return None
        parts.append(model(batch[0].to(device)))
        places.append(batch[2])
    outputs = torch.cat(parts)
    return torch.empty_like(outputs).index_copy_(0, torch.cat(places).to(device), outputs)


def teacher(model: nn.Module, cached: Tensor | None) -> Teacher:
    """A look-up in cached outputs, or the dense model itself run on each batch."""
    if cached is not None:
        return lambda batch: cached[batch[2].to(cached.device)]
    model.eval()

    @torch.no_grad()  # and not requires_grad_(False): plans are cut from this very model, and have to be trained
    def run(batch: Any) -> Tensor:
        return model.to(batch[0].device)(batch[0])

    return run


class AttentionTransfer:
    """weight / 2 x the squared distance of normalised attention maps, over modules (Zagoruyko & Komodakis 2017, eq. 2).

    A map is the mean square over channels, so that maps of models with different widths compare. `modules` name modules
    of both models whose outputs are (N, C, H, W) or (N, T, C); those a pruned model has lost are passed over.
    """

    def __init__(self, teacher: nn.Module, modules: Sequence[str], weight: float) -> None:
        self.teacher, self.modules, self.weight = teacher, tuple(modules), weight
        names = dict(teacher.named_modules())
        if unknown := [name for name in modules if name not in names]:
            raise ConfigError(
                f"distillation.features names no modules of the model: {unknown}{nearest(unknown[0], list(names))}"
            )
        self._maps: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[None]:
        """Read the maps of `student` inside the `with` block, in which it is trained."""
        handles = _tap(student, self.modules, self._maps)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._maps.clear()

    def __call__(self, batch: Any) -> Tensor:
        wanted: dict[str, Tensor] = {}
        self.teacher.to(batch[0].device).eval()
        handles = _tap(self.teacher, self.modules, wanted)
        try:
            with torch.no_grad():
                self.teacher(batch[0])
        finally:
            for handle in handles:
                handle.remove()
        apart = [(self._maps[name] - wanted[name]).square().sum(1).mean() for name in wanted if name in self._maps]
        return 0.5 * self.weight * torch.stack(apart).sum() if apart else batch[0].new_zeros(())


def _tap(model: nn.Module, modules: Sequence[str], maps: dict[str, Tensor]) -> list[RemovableHandle]:
    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.dim() < 3:
                found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ConfigError(
                    f"distillation.features needs maps of shape (N, C, H, W) or (N, T, C); '{name}' gives {found}"
                )
            channels = 2 if output.dim() == 3 else 1
            maps[name] = F.normalize(output.square().mean(channels).flatten(1))

        return keep

    found = dict(model.named_modules())
    return [found[name].register_forward_hook(hook(name)) for name in modules if name in found]
