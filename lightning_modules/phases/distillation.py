"""Distillation from the dense model's outputs, around any task's training step.

Source: Hinton et al. 2015, section 2.
"""

from __future__ import annotations

import functools
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
from lightning_modules.tasks.contract import Divergence, called, inputs_of, loss_in, to_device
from lightning_modules.tasks.whole import network_of

Teacher = Callable[[Any, Inputs], Any]
"""Maps a batch, and the inputs that the network was called with, to the dense model's outputs."""
MOST_CACHED = 2**30
"""Most bytes of dense outputs that are cached. Beyond that the dense model runs on each batch."""


@dataclass(frozen=True)
class Distillation:
    """Computes (1 - weight) x loss + weight x divergence from the teacher's outputs.

    The divergence is taken at the temperature. `features` adds the distance between the attention
    maps of the two models.
    """

    teacher: Teacher
    divergence: Divergence
    temperature: float = 3.0
    weight: float = 0.5
    features: AttentionTransfer | None = None

    def __call__(self, loss: Tensor, outputs: Any, batch: Any, inputs: Inputs) -> Tensor:
        if self.weight > 0.0:
            dense = self.teacher(batch, inputs)
            divergence = self.divergence(outputs, dense, self.temperature)
            loss = (1.0 - self.weight) * loss + self.weight * divergence
        if self.features is None:
            return loss
        return loss + self.features(inputs)


@contextmanager
def distilled(task: LightningModule, distillation: Distillation | None) -> Iterator[None]:
    """Inside the `with` block the task's training step returns the distilled loss.

    None leaves the training step as it is.
    Errors: ConfigError, during training, for a training step that does not call `self.model`.
    """
    if distillation is None:
        yield
        return
    original_step = task.training_step
    network = network_of(task)
    calls: list[tuple[Inputs, Any]] = []

    def record(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> None:
        calls.append((Inputs(args, kwargs), outputs))

    @functools.wraps(original_step)  # Lightning reads from it which arguments the step takes
    def training_step(batch: Any, *rest: Any, **more: Any) -> Any:
        calls.clear()
        result = original_step(batch, *rest, **more)
        if not calls:
            raise _not_called(task)
        inputs, outputs = calls[0]
        loss = distillation(loss_in(result, task), outputs, batch, inputs)
        if isinstance(result, Mapping):
            return {**result, "loss": loss}
        return loss

    handle = network.register_forward_hook(record, with_kwargs=True)
    task.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        del task.training_step
        handle.remove()
        calls.clear()


def _not_called(task: LightningModule) -> ConfigError:
    return ConfigError(
        f"{type(task).__name__}.training_step must call `{called(task)}`, to be distilled; it does "
        "not"
    )


Index = Callable[[Any], Tensor | None]
"""Maps a batch to the index of each sample in the training data, shape (N,).

None where a sample does not look the same each time.
"""


@torch.no_grad()
def dense_outputs(
    task: LightningModule, batches: Iterable[Any], index: Index, device: torch.device
) -> Any:
    """The dense model's outputs on every training sample, in the order of the samples' index.

    Returns a tree of tensors of shape (n, ...). Returns None where samples do not look the same
    twice, where an output has no batch dimension in front, or where all outputs together take more
    than `MOST_CACHED` bytes.
    """
    model = network_of(task.to(device).eval())
    parts: list[Any] = []
    places: list[Tensor] = []
    size = 0
    for batch in batches:
        moved = to_device(task, batch, device)
        place = index(moved)
        if place is None:
            return None
        outputs = inputs_of(task, moved).call(model)
        size += _bytes_of(outputs)
        if size > MOST_CACHED or not _all_batched(outputs, len(place)):
            return None
        parts.append(outputs)
        places.append(place)
    order = torch.cat(places)

    def joined(*pieces: Tensor) -> Tensor:
        values = torch.cat(pieces)
        return torch.empty_like(values).index_copy_(0, order.to(values.device), values)

    return pytree.tree_map(joined, *parts)


def _bytes_of(outputs: Any) -> int:
    size = 0
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            size += leaf.numel() * leaf.element_size()
    return size


def _all_batched(outputs: Any, size: int) -> bool:
    """Whether every output is a tensor whose first dimension is `size`."""
    for leaf in pytree.tree_leaves(outputs):
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != size:
            return False
    return True


def teacher(model: nn.Module, cached: Any, index: Index = lambda batch: None) -> Teacher:
    """Looks up the cached outputs; without any, runs the dense model on each batch's inputs."""
    if cached is not None:

        def look_up(batch: Any, inputs: Inputs) -> Any:
            place = index(batch)
            assert place is not None
            return pytree.tree_map(lambda values: values[place.to(values.device)], cached)

        return look_up
    model.eval()

    # requires_grad_(False) would not do: plans are cut from this very model and must be trainable
    @torch.no_grad()
    def run(batch: Any, inputs: Inputs) -> Any:
        return inputs.call(model.to(inputs.device))

    return run


class AttentionTransfer:
    """The distance between the normalised attention maps of teacher and student.

    It is half the squared distance, summed over modules and averaged over samples (Zagoruyko &
    Komodakis 2017, eq. 2, with beta = 1). A map is the mean square over channels, so that maps of
    models with different widths can be compared. `modules` names modules of both models whose
    outputs are (N, C, H, W) or (N, T, C). Modules that a pruned model has lost are skipped.
    Errors: ConfigError for names that are no modules of the teacher, and, when called, for outputs
    of another shape.
    """

    def __init__(self, teacher: nn.Module, modules: Sequence[str]) -> None:
        self.teacher = teacher
        self.modules = tuple(modules)
        names = dict(teacher.named_modules())
        unknown = [name for name in modules if name not in names]
        if unknown:
            hint = nearest(unknown[0], list(names))
            raise ConfigError(
                f"distillation.features names no modules of the model: {unknown}{hint}"
            )
        self._maps: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[None]:
        """Inside the `with` block each forward pass of `student` records its attention maps."""
        handles = _tap(student, self.modules, self._maps)
        try:
            yield
        finally:
            _remove(handles)
            self._maps.clear()

    def __call__(self, inputs: Inputs) -> Tensor:
        dense_maps = self._dense_maps(inputs)
        distances = []
        for name, dense_map in dense_maps.items():
            if name in self._maps:
                difference = self._maps[name] - dense_map
                distances.append(difference.square().sum(1).mean())
        if not distances:
            return torch.zeros((), device=inputs.device)
        return 0.5 * torch.stack(distances).sum()

    def _dense_maps(self, inputs: Inputs) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}
        self.teacher.to(inputs.device).eval()
        handles = _tap(self.teacher, self.modules, maps)
        try:
            with torch.no_grad():
                inputs.call(self.teacher)
        finally:
            _remove(handles)
        return maps


def _tap(
    model: nn.Module, modules: Sequence[str], maps: dict[str, Tensor]
) -> list[RemovableHandle]:
    """Make each forward pass write the attention maps of those modules into `maps`."""

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            maps[name] = _attention_map(name, output)

        return record

    known = dict(model.named_modules())
    handles = []
    for name in modules:
        if name in known:
            handles.append(known[name].register_forward_hook(recorder(name)))
    return handles


def _attention_map(name: str, output: Any) -> Tensor:
    """The mean square over channels, flattened and normalised, shape (N, positions)."""
    if not isinstance(output, Tensor):
        raise _no_map(name, type(output).__name__)
    if output.dim() < 3:
        raise _no_map(name, list(output.shape))
    channel_dim = 2 if output.dim() == 3 else 1
    return F.normalize(output.square().mean(channel_dim).flatten(1))


def _no_map(name: str, shape: Any) -> ConfigError:
    return ConfigError(
        "distillation.features needs maps of shape (N, C, H, W) or (N, T, C); "
        f"'{name}' gives {shape}"
    )


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
