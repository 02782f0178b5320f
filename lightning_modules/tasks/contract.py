"""What a network is for: the only place that knows what a batch, an output and a metric mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.recipe import Recipe, locate
from lightning_modules.tasks.divergence import squared_error
from lightning_modules.tasks.metrics import Direction
from lightning_modules.tasks.outside import outside_trainer, step_arguments
from lightning_modules.tasks.whole import ITSELF, PATH, Whole, network_of


class Task(Protocol):
    """A LightningModule around `model`, the network that is pruned.

    Its `training_step` returns the loss; its validation logs every metric of `directions`. The
    search looks into no batch and no output. It captures what `model` is called with, and asks the
    task how far two outputs are apart.

    Optional, beside what Lightning asks for:
    - `scale`: what counts as one unit of a metric, for tolerances and guards. By default it is 1
      for metrics that the task calls a fraction, and the dense model's own value for all others.
    - `references`: by metric, the value from which the hypervolume counts.
    - `divergence(outputs, dense, temperature)`: how far outputs are from the dense model's, a
      scalar that is 0 where they are equal. By default it is the squared error in multiples of the
      dense outputs' variance. A task with None cannot be distilled.
    - `check(outputs, batch)`: raises ConfigError where the model does not fit the data.
    - `by_class`: after a validation the quality of each class by its name, more is better. It is
      read once for each confirmed model, and says who pays for a smaller one.
    - `classifies`: says that targets are class indices of shape (N,), so that samples may be mixed
      by pairs.
    """

    model: nn.Module
    directions: Mapping[str, Direction]

    def training_step(self, batch: Any, batch_index: int) -> Any: ...

    def validation_step(self, batch: Any, batch_index: int) -> Any: ...


def _class_names(data: Any) -> list[str]:
    """The names of the classes in their order; empty for data without `classes`."""
    names = getattr(data, "classes", ())
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


class _Reached(BaseException):
    """Raised when the network is called. A task's `except Exception` cannot swallow it."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs


def build_task(recipe: Recipe, model: nn.Module, data: Any) -> LightningModule:
    """The task around a model.

    Its constructor gets `num_classes`, `class_names` and `data` if it takes them.

    A `Whole` model has its task inside of it.
    Errors: ConfigError for what is no LightningModule that holds the model as `model`.
    """
    if isinstance(model, Whole):
        return model.module
    accepted = inspect.signature(locate(recipe.target)).parameters
    extra: dict[str, Any] = {}
    if "num_classes" in accepted and hasattr(data, "num_classes"):
        extra["num_classes"] = data.num_classes
    elif "num_classes" in accepted and "num_classes" not in recipe.arguments:
        raise ConfigError(
            f"{recipe.target} asks for the number of classes, and the data has no num_classes: "
            "give the number as +task.num_classes=10, or the data this attribute"
        )
    names = _class_names(data)
    if "class_names" in accepted and len(names) == extra.get("num_classes"):
        extra["class_names"] = names
    if "data" in accepted:
        extra["data"] = data
    task = recipe.build(model=model, **extra)
    if not isinstance(task, LightningModule) or getattr(task, "model", None) is not model:
        raise ConfigError(
            "a task must be a LightningModule that keeps the network it is given as `self.model`; "
            f"{recipe.target} builds a {type(task).__name__}"
        )
    return task


def inputs_of(task: LightningModule, batch: Any) -> Inputs:
    """What the network is called with when this batch is validated.

    The network itself does not run. If it is called several times, the first call counts.
    Errors: ConfigError for a task that does not call it.
    """

    def reached(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(Inputs(args, kwargs))

    handle = network_of(task).register_forward_pre_hook(reached, with_kwargs=True)
    try:
        validated(task, batch)
    except _Reached as call:
        return call.inputs
    finally:
        handle.remove()
    raise ConfigError(
        f"{type(task).__name__}.validation_step must call the network that is pruned, "
        f"`{called(task)}`; it does not"
    )


def called(task: LightningModule) -> str:
    """How the task's steps call the network, in words."""
    path = vars(task).get(PATH, "model")
    return "self" if path == ITSELF else f"self.{path}"


def validated(task: LightningModule, batch: Any) -> dict[str, Any]:
    """Validate one batch outside of a Trainer; return what was logged, by name."""
    with outside_trainer(task) as logged, torch.no_grad():
        task.on_validation_epoch_start()
        task.validation_step(*step_arguments(task.validation_step, batch))
    return logged


def inputs_from(
    task: LightningModule, batches: Iterable[Any], device: torch.device
) -> Iterator[Inputs]:
    """What the network is called with on each of the batches, on the device."""
    for batch in batches:
        yield inputs_of(task, to_device(task, batch, device))


def to_device(task: LightningModule, batch: Any, device: torch.device) -> Any:
    """The batch as Lightning hands it to the task's steps."""
    batch = task.on_before_batch_transfer(batch, 0)
    batch = task.transfer_batch_to_device(batch, device, 0)
    return task.on_after_batch_transfer(batch, 0)


def step_loss(task: LightningModule, batch: Any) -> Tensor:
    """The loss of one training step, outside of a Trainer.

    Errors: ConfigError for a step that returns no loss, or one without a gradient.
    """
    with outside_trainer(task):
        arguments = step_arguments(task.training_step, batch)
        loss = loss_in(task.training_step(*arguments), task)
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ConfigError(
            f"the loss of {type(task).__name__}.training_step has no gradient: all parameters that "
            "it depends on are frozen (requires_grad=False); take a method that needs none, as l2"
        )
    return loss


def loss_in(result: Any, task: Any) -> Tensor:
    """The loss in what a training step returned. Errors: ConfigError if there is none."""
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"{type(task).__name__}.training_step must return the loss, or a dict with it as "
            f"'loss'; it returned {type(result).__name__}"
        )
    return loss


Divergence = Callable[[Any, Any, float], Tensor]
"""Maps (outputs, dense outputs, temperature) to how far they are apart, a scalar."""


def divergence_of(task: Any) -> Divergence | None:
    """The task's own divergence, or the squared error. None for a task that wants none."""
    divergence = getattr(task, "divergence", squared_error)
    return divergence if callable(divergence) else None


def by_class_of(task: Any) -> dict[str, float]:
    """The quality of each class at the last validation; empty for a task that does not tell."""
    told = getattr(task, "by_class", None)
    if not isinstance(told, Mapping):
        return {}
    return {str(name): float(value) for name, value in told.items()}


def check_task(task: LightningModule) -> None:
    """Errors: ConfigError for a module that the phases cannot train or validate."""
    name = type(task).__name__
    if not task.automatic_optimization:
        raise ConfigError(
            f"{name} sets automatic_optimization = False, so that its training_step makes the "
            "optimizer's steps, and several optimizers may take turns; the phases need a "
            "training_step that returns one loss: leave the steps to Lightning"
        )
    for step in ("training_step", "validation_step"):
        if not is_overridden(step, task):
            raise ConfigError(
                f"a task needs training_step, for its loss, and validation_step, for its quality; "
                f"{name} has no {step}"
            )
        if "dataloader_iter" in inspect.signature(getattr(task, step)).parameters:
            raise ConfigError(
                f"{name}.{step} takes `dataloader_iter`; it must take a batch, as the search sees "
                "what the network is called with on one batch"
            )


def check_outputs(task: LightningModule, batch: Any) -> None:
    """Run the network and a validation step on one batch.

    Errors: ConfigError if the network does not run on the batch, or if the task cannot use its
    outputs.
    """
    outputs = _run_network(task, inputs_of(task, batch))
    check = getattr(task, "check", None)
    if callable(check):
        check(outputs, batch)
    try:
        validated(task, batch)
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"{type(task).__name__}.validation_step must take the model's outputs and the data's "
            f"batches; {type(error).__name__}: {error}"
        ) from error


def check_training(task: LightningModule, batch: Any) -> None:
    """Run a training step on one batch; random states stay as they are.

    Errors: ConfigError for a step that fails, or returns no loss.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            step_loss(task.train(), batch)
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"{type(task).__name__}.training_step must take the data's training batches and give "
            f"the loss; {type(error).__name__}: {error}"
        ) from error


def _run_network(task: LightningModule, inputs: Inputs) -> Any:
    try:
        with torch.no_grad():
            return inputs.call(network_of(task).eval())
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors())
        raise ConfigError(
            f"the model must take the data's inputs {shapes}; {type(error).__name__}: {error}; "
            "see the model's arguments, such as model.features, in_channels or vocab_size"
        ) from error
