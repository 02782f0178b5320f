"""What a network is for: the one seam between the search and what a batch, an output and a metric mean."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.recipe import Recipe, locate
from lightning_modules.tasks.divergence import squared_error
from lightning_modules.tasks.metrics import Direction


class Task(Protocol):
    """A LightningModule around `model`, the network that is pruned.

    Its `training_step` gives the loss, its validation logs every metric of `directions`. The search looks into no batch
    and no output: it captures what `model` is called with, and asks the task how far two outputs are apart.

    Optional, beside what Lightning asks for:
    - `scale`: what counts as one unit of a metric, for tolerances and guards; by default 1 for what the task calls a
      fraction, and the dense model's own value for everything else;
    - `references`: the value from which the hypervolume counts, by metric;
    - `divergence(outputs, dense, temperature)`: how far outputs are from the dense model's, a scalar that is 0 where
      they are equal; by default the squared error in multiples of the dense outputs' variance; None: no distillation;
    - `check(outputs, batch)`: raises ConfigError where the model does not fit the data;
    - `classifies`: that targets are class indices of shape (N,), so that samples may be mixed by pairs.
    """

    model: nn.Module
    directions: Mapping[str, Direction]

    def training_step(self, batch: Any, batch_index: int) -> Any: ...

    def validation_step(self, batch: Any, batch_index: int) -> Any: ...


class _Reached(BaseException):
    """The network was called; no `except Exception` of a task can swallow it."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs


def build_task(recipe: Recipe, model: nn.Module, data: Any) -> LightningModule:
    """The task around a model; `num_classes` and `data` are given where its constructor asks for them.

    Errors: ConfigError for what is no LightningModule with the model as `model`.
    """
    offered = {"num_classes": getattr(data, "num_classes", None), "data": data}
    accepted = inspect.signature(locate(recipe.target)).parameters
    task = recipe.build(
        model=model, **{name: value for name, value in offered.items() if name in accepted}
    )
    if not isinstance(task, LightningModule) or getattr(task, "model", None) is not model:
        raise ConfigError(
            f"a task must be a LightningModule that keeps the network it is given as `self.model`; {recipe.target} "
            f"builds a {type(task).__name__}"
        )
    return task


def inputs_of(task: LightningModule, batch: Any) -> Inputs:
    """What the network is called with when this batch is validated; the network itself does not run.

    The first call counts where there are several. Errors: ConfigError for a task that does not call it.
    """

    def reached(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(Inputs(args, kwargs))

    handle = task.model.register_forward_pre_hook(reached, with_kwargs=True)  # type: ignore[union-attr, operator]
    try:
        with torch.no_grad():
            task.validation_step(batch, 0)
    except _Reached as call:
        return call.inputs
    finally:
        handle.remove()  # type: ignore[union-attr]
    raise ConfigError(f"{type(task).__name__}.validation_step must call `self.model`; it does not")


def inputs_from(
    task: LightningModule, batches: Iterable[Any], device: torch.device
) -> Iterator[Inputs]:
    """What the network is called with on each of the batches, on the device."""
    return (inputs_of(task, to_device(task, batch, device)) for batch in batches)


def to_device(task: LightningModule, batch: Any, device: torch.device) -> Any:
    """The batch as Lightning hands it to the task's steps."""
    return task.transfer_batch_to_device(batch, device, 0)


def step_loss(task: LightningModule, batch: Any) -> Tensor:
    """The loss of one training step, outside of a Trainer. Errors: ConfigError for a step that gives none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `self.log` has nobody to log to
        return loss_in(task.training_step(batch, 0), task)


def loss_in(result: Any, task: Any) -> Tensor:
    """The loss in what a training step returned. Errors: ConfigError where there is none."""
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"{type(task).__name__}.training_step must return the loss, or a dict with it as 'loss'; it returned "
            f"{type(result).__name__}"
        )
    return loss


Divergence = Callable[[Any, Any, float], Tensor]


def divergence_of(task: Any) -> Divergence | None:
    """How far outputs are from the dense model's: the task's own measure, else the squared error; None: it has none."""
    own = getattr(task, "divergence", squared_error)
    return own if callable(own) else None


def check_outputs(task: LightningModule, batch: Any) -> None:
    """Errors: ConfigError where the network does not run on a batch, or gives what the task cannot use."""
    inputs = inputs_of(task, batch)
    try:
        with torch.no_grad():
            outputs = inputs.call(task.model.eval())  # type: ignore[union-attr, operator]
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors())
        raise ConfigError(
            f"the model must take the data's inputs {shapes}; {type(error).__name__}: {error}"
        ) from error
    if callable(check := getattr(task, "check", None)):
        check(outputs, batch)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            task.validation_step(batch, 0)
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"{type(task).__name__}.validation_step must take the model's outputs and the data's batches; "
            f"{type(error).__name__}: {error}"
        ) from error
