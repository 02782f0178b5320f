"""Distillation from the dense model's outputs (Hinton et al. 2015, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Teacher = Callable[[Any], Tensor]
"""From a batch to the dense model's logits, shape (N, classes)."""


@dataclass(frozen=True)
class Distillation:
    """(1 - weight) x loss + weight x T^2 x KL(teacher || student), both softened by the temperature T."""

    teacher: Teacher
    temperature: float = 3.0
    weight: float = 0.5

    def __call__(self, loss: Tensor, logits: Tensor, batch: Any) -> Tensor:
        return (1.0 - self.weight) * loss + self.weight * self.divergence(logits, self.teacher(batch))

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
