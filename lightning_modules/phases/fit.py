"""Training and evaluation by Lightning.

The dense model, finetuning and confirmation all train through `fit`.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.optim import Optimizer, lr_scheduler

from lightning_modules.errors import ConfigError
from lightning_modules.phases.formats import FORMATS
from lightning_modules.phases.memory import in_parts
from lightning_modules.phases.own_optimizer import own_optimizer
from lightning_modules.phases.trainer_options import PLAIN, TrainerOptions, placed
from lightning_modules.quiet import quiet
from lightning_modules.recipe import Recipe, locate
from lightning_modules.tasks.whole import in_train_mode, is_users, trained_of

OnRound = Callable[[int, dict[str, float]], bool]
"""Maps the number of rounds done and the validation metrics to whether training goes on."""


class DivergedError(Exception):
    """The training loss became NaN or infinite.

    The trial has failed, but the configuration is well formed.
    """


OWN = Recipe("own")
"""Stands for the optimizer of the task: its own `configure_optimizers`, schedulers included."""
TOTALS = ("total_steps", "T_max", "total_iters")
"""Names under which torch's schedulers take the number of steps; filled in where not given."""


@dataclass(frozen=True)
class Optimization:
    """An optimizer recipe and its learning-rate scheduler, which is stepped with the optimizer.

    Without a `scheduler` the learning rate rises linearly over the `warmup` fraction of all steps,
    then falls as a cosine. `rewound` is a fraction t: training then follows only the last t of the
    curve, which is learning-rate rewinding (Renda et al. 2020). `clip_norm` is the largest norm of
    the gradient; None does not clip. With the optimizer `OWN` only `clip_norm` counts, and all
    learning rates of the task's own optimizer are multiplied by `lr_factor`.
    """

    optimizer: Recipe
    warmup: float = 0.1
    clip_norm: float | None = None
    scheduler: Recipe | None = None
    rewound: float | None = None
    lr_factor: float = 1.0

    @property
    def own(self) -> bool:
        """Whether the task brings its optimizer."""
        return self.optimizer == OWN

    def check(self) -> None:
        """Errors: ConfigError if the optimizer or scheduler cannot be built from its arguments."""
        if self.own:
            return
        try:
            self.configure(torch.nn.Linear(1, 1), 100)
        except (TypeError, ValueError) as error:
            names = self.optimizer.target
            if self.scheduler:
                names += f", {self.scheduler.target}"
            raise ConfigError(f"{names}: {error}") from error

    def configure(self, module: torch.nn.Module, steps: int) -> dict[str, Any]:
        """What Lightning's `configure_optimizers` returns, for training of `steps` steps."""
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trained:
            raise ConfigError(
                "nothing can be trained: every parameter is frozen (requires_grad=False); unfreeze "
                "some, or search without training: phases.train.epochs=0 "
                "phases.finetune.round_steps=0"
            )
        optimizer = self.optimizer.build(trained)
        schedule = self._scheduler(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _scheduler(self, optimizer: Optimizer, steps: int) -> Any:
        whole = steps
        if self.rewound is not None:
            whole = max(steps, round(steps / self.rewound))
        skipped = whole - steps
        if self.scheduler is None:
            return lr_scheduler.LambdaLR(optimizer, self._curve(whole, skipped))
        totals = dict.fromkeys(_missing_totals(self.scheduler), whole)
        scheduler = self.scheduler.build(optimizer, **totals)
        with warnings.catch_warnings():
            # torch warns that no optimizer has stepped yet; skipping steps means just that
            warnings.simplefilter("ignore")
            for _ in range(skipped):
                scheduler.step()
        return scheduler

    def _curve(self, whole: int, begin: int) -> Callable[[int], float]:
        """Warm-up and cosine over `whole` steps, entered at step `begin`."""
        rise = max(1, round(self.warmup * whole))
        fall = max(1, whole - rise)

        def factor(step: int) -> float:
            position = begin + step
            if position < rise:
                return (position + 1) / (rise + 1)
            return 0.5 * (1.0 + math.cos(math.pi * (position - rise) / fall))

        return factor


def _missing_totals(scheduler: Recipe) -> set[str]:
    """The names in `TOTALS` that the scheduler takes and that its recipe does not give.

    A recipe with `epochs` says the number of steps by itself.
    Errors: ConfigError for what is no scheduler of torch, and for one that needs a metric.
    """
    kind = locate(scheduler.target)
    if not (isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler)):
        raise ConfigError(
            f"a scheduler must be one of torch.optim.lr_scheduler's; got {scheduler.target}"
        )
    if issubclass(kind, lr_scheduler.ReduceLROnPlateau):
        raise ConfigError(
            "a scheduler is stepped without a metric; ReduceLROnPlateau needs one: take another"
        )
    if "epochs" in scheduler.arguments:
        return set()
    accepted = set(inspect.signature(kind).parameters)
    return set(TOTALS) & accepted - set(scheduler.arguments)


def fit(
    task: LightningModule,
    batches: Iterable[Any],
    optimization: Optimization,
    *,
    rounds: int,
    round_steps: int,
    device: torch.device,
    val: Iterable[Any] | None = None,
    on_round: OnRound | None = None,
    callbacks: Sequence[Callback] = (),
    accumulate: int = 1,
    memory_format: str = "contiguous",
    options: TrainerOptions = PLAIN,
) -> int:
    """Train for `rounds` rounds of `round_steps` optimizer steps each; return the rounds done.

    With both `val` and `on_round` the task is validated after each round, and `on_round` decides
    whether training goes on. The caller seeds torch's RNG. sparse.py has `callbacks` that train
    under masks. `accumulate` is the number of parts in which each batch goes through the model; the
    gradients of all make one step. During training the weights lie in this one of `FORMATS`.
    `options` are the Trainer's.
    Errors: DivergedError if the loss is not finite at the end of a round.
    """
    watch = _Rounds(round_steps, on_round)
    val = None if on_round is None else val
    interval = None if val is None else round_steps * accumulate * options.accumulated
    in_train_mode(task)  # Lightning keeps the mode it finds
    with quiet(), _optimized(task, optimization, rounds * round_steps):
        trainer = Trainer(
            **_length(optimization, batches, rounds * round_steps),
            gradient_clip_val=optimization.clip_norm,
            callbacks=[*callbacks, watch],
            **_validation(interval),
            **_plain(task, device),
            **options.in_training(accumulate),
        )
        with _in_format(task, memory_format):
            trainer.fit(task, in_parts(options.in_steps(batches), accumulate), val)
    return rounds if val is None else watch.rounds


def _length(optimization: Optimization, batches: Any, steps: int) -> dict[str, Any]:
    """A Trainer's arguments for so many steps.

    A module may lay out its own learning rate over the epochs that they make.
    """
    if not optimization.own:
        return {"max_steps": steps}
    return {"max_steps": steps, "max_epochs": math.ceil(steps / max(1, len(batches)))}


def evaluate(
    task: LightningModule,
    batches: Iterable[Any],
    device: torch.device,
    options: TrainerOptions = PLAIN,
) -> dict[str, float]:
    """The task's metrics over all batches, by name."""
    with quiet():
        trainer = Trainer(**_plain(task, device), **options.in_evaluation())
        return dict(trainer.validate(task, batches, verbose=False)[0])


def run_test_steps(
    task: LightningModule,
    batches: Iterable[Any],
    device: torch.device,
    options: TrainerOptions = PLAIN,
) -> dict[str, float]:
    """What the task's `test_step` logs over all batches; empty where it has none."""
    if not is_overridden("test_step", task):
        return {}
    with quiet():
        trainer = Trainer(**_plain(task, device), **options.in_evaluation())
        return dict(trainer.test(task, batches, verbose=False)[0])


def _validation(interval: int | None) -> dict[str, Any]:
    """A Trainer's arguments to validate every `interval` batches; None never validates."""
    never = interval is None
    return {
        "val_check_interval": interval,
        "check_val_every_n_epoch": 1 if never else None,
        "limit_val_batches": 0 if never else None,
    }


@contextmanager
def _optimized(task: LightningModule, optimization: Optimization, steps: int) -> Iterator[None]:
    """Gives the task its optimizer, as LightningCLI does: it belongs to the phase, not the task.

    With the optimizer `OWN` it is the task's.
    """

    def configured() -> Any:
        if optimization.own:
            return own_optimizer(task, optimization.lr_factor)
        return optimization.configure(trained_of(task), steps)

    task.configure_optimizers = configured  # type: ignore[method-assign]
    try:
        yield
    finally:
        del task.configure_optimizers


@contextmanager
def _in_format(task: LightningModule, memory_format: str) -> Iterator[None]:
    """Inside the `with` block the model's weights lie in memory in that one of `FORMATS`."""
    model: Any = trained_of(task)
    model.to(memory_format=FORMATS[memory_format])
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)


class _Rounds(Callback):
    """Counts rounds, checks the loss at the end of each, and asks `on_round` whether to go on."""

    def __init__(self, round_steps: int, on_round: OnRound | None) -> None:
        self.round_steps = round_steps
        self.on_round = on_round
        self.rounds = 0
        self._before: dict[str, Any] = {}

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        # once a round, not once a step: reading the loss waits for an accelerator
        if trainer.global_step % self.round_steps != 0:
            return
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise DivergedError(f"the training loss became {loss} at step {trainer.global_step}")

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        self._before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self.rounds += 1
        metrics = {}
        for name, value in trainer.callback_metrics.items():
            # what the training steps logged is still there
            if value is not self._before.get(name):
                metrics[name] = float(value)
        if self.on_round is not None and not self.on_round(self.rounds, metrics):
            trainer.should_stop = True


def _plain(task: LightningModule, device: torch.device) -> dict[str, Any]:
    """Arguments of a Trainer that neither writes nor prints: the orchestrator does both.

    A user's own module may log pictures with `self.logger`, which goes nowhere here.
    """
    return {
        **placed(device),
        "logger": DummyLogger() if is_users(task) else False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "inference_mode": False,  # tensors made in inference mode cannot be trained afterwards
    }
