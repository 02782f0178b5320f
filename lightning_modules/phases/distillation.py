"""Distillation from the dense model's outputs (Hinton et al. 2015, section 2), around any task's training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.recipe import nearest
from lightning_modules.tasks.contract import Divergence, inputs_of, loss_in, to_device

Teacher = Callable[[Any, Inputs], Any]
"""From a batch, and what the network was called with, to the dense model's outputs."""
MOST_CACHED = 2**30
"""Bytes of dense outputs that are kept; beyond, the dense model runs along."""


@dataclass(frozen=True)
class Distillation:
    """(1 - weight) x loss + weight x divergence from the teacher's outputs at the temperature.

    `features` adds the distance between the attention maps of the two models.
    """

    teacher: Teacher
    divergence: Divergence
    temperature: float = 3.0
    weight: float = 0.5
    features: AttentionTransfer | None = None

    def __call__(self, loss: Tensor, outputs: Any, batch: Any, inputs: Inputs) -> Tensor:
        if self.weight > 0.0:
            apart = self.divergence(outputs, self.teacher(batch, inputs), self.temperature)
            loss = (1.0 - self.weight) * loss + self.weight * apart
        return loss if self.features is None else loss + self.features(inputs)


@contextmanager
def distilled(task: LightningModule, how: Distillation | None) -> Iterator[None]:
    """Inside the `with` block the task's training step gives its loss mixed with the distillation's."""
    if how is None:
        yield
        return
    step, network = task.training_step, task.model
    calls: list[tuple[Inputs, Any]] = []

    def called(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> None:
        calls.append((Inputs(args, kwargs), outputs))

    def training_step(batch: Any, *rest: Any, **more: Any) -> Any:
        calls.clear()
        result = step(batch, *rest, **more)
        if not calls:
            raise ConfigError(
                f"{type(task).__name__}.training_step must call `self.model`, to be distilled; it does not"
            )
        inputs, outputs = calls[0]
        loss = how(loss_in(result, task), outputs, batch, inputs)
        return {**result, "loss": loss} if isinstance(result, Mapping) else loss

    handle = network.register_forward_hook(called, with_kwargs=True)  # type: ignore[union-attr, operator]
    task.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        del task.training_step
        handle.remove()  # type: ignore[union-attr]
        calls.clear()


Index = Callable[[Any], Tensor | None]
"""From a batch to the index of each sample in the training data, shape (N,); None where samples vary."""


@torch.no_grad()
def dense_outputs(
    task: LightningModule, batches: Iterable[Any], index: Index, device: torch.device
) -> Any:
    """The dense model's outputs on every training sample, in the order of their index: a tree of tensors (n, ...).

    None where samples are not the same twice, where an output has no batch in front, or where they would be too many.
    """
    model = task.to(device).eval().model
    parts: list[Any] = []
    places: list[Tensor] = []
    size = 0
    for batch in batches:
        moved = to_device(task, batch, device)
        if (place := index(moved)) is None:
            return None
        outputs = inputs_of(task, moved).call(model)
        leaves = pytree.tree_leaves(outputs)
        size += sum(
            leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor)
        )
        if size > MOST_CACHED or not all(_batched(leaf, len(place)) for leaf in leaves):
            return None
        parts.append(outputs)
        places.append(place)
    order = torch.cat(places)
    return pytree.tree_map(lambda *pieces: _ordered(torch.cat(pieces), order), *parts)


def _batched(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size


def _ordered(values: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(values).index_copy_(0, order.to(values.device), values)


def teacher(model: nn.Module, cached: Any, index: Index = lambda batch: None) -> Teacher:
    """A look-up in cached outputs, or the dense model itself run on each batch's inputs."""
    if cached is not None:

        def known(batch: Any, inputs: Inputs) -> Any:
            place = index(batch)
            assert place is not None
            return pytree.tree_map(lambda values: values[place.to(values.device)], cached)

        return known
    model.eval()

    @torch.no_grad()  # and not requires_grad_(False): plans are cut from this very model, and have to be trained
    def run(batch: Any, inputs: Inputs) -> Any:
        return inputs.call(model.to(inputs.device))

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

    def __call__(self, inputs: Inputs) -> Tensor:
        wanted: dict[str, Tensor] = {}
        self.teacher.to(inputs.device).eval()
        handles = _tap(self.teacher, self.modules, wanted)
        try:
            with torch.no_grad():
                inputs.call(self.teacher)
        finally:
            for handle in handles:
                handle.remove()
        apart = [
            (self._maps[name] - wanted[name]).square().sum(1).mean()
            for name in wanted
            if name in self._maps
        ]
        return (
            0.5 * self.weight * torch.stack(apart).sum()
            if apart
            else torch.zeros((), device=inputs.device)
        )


def _tap(
    model: nn.Module, modules: Sequence[str], maps: dict[str, Tensor]
) -> list[RemovableHandle]:
    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.dim() < 3:
                given = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ConfigError(
                    f"distillation.features needs maps of shape (N, C, H, W) or (N, T, C); '{name}' gives {given}"
                )
            channels = 2 if output.dim() == 3 else 1
            maps[name] = F.normalize(output.square().mean(channels).flatten(1))

        return keep

    known = dict(model.named_modules())
    return [known[name].register_forward_hook(hook(name)) for name in modules if name in known]
