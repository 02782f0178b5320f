"""Training and evaluation by Lightning: one way for the dense model, for finetuning and for confirmation."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_modules.errors import ConfigError
from lightning_modules.phases.formats import FORMATS
from lightning_modules.phases.memory import in_parts
from lightning_modules.recipe import Recipe, locate

OnRound = Callable[[int, dict[str, float]], bool]
"""From (rounds done, validation metrics) to whether to go on."""


class DivergedError(Exception):
    """The training loss became NaN or infinite: the trial failed, through no fault of the configuration's form."""


TOTALS = ("total_steps", "T_max", "total_iters")
"""Names under which torch's schedulers ask for the number of steps; filled in where they are not given."""


@dataclass(frozen=True)
class Optimization:
    """An optimizer recipe and its learning-rate scheduler, stepped at every optimizer step.

    Without a `scheduler` the rate rises linearly over the `warmup` fraction of all steps, then falls as a cosine.
    `rewound` = t instead takes the last t of the curve as a fraction: learning-rate rewinding (Renda et al. 2020).
    """

    optimizer: Recipe
    warmup: float = 0.1
    clip_norm: float | None = None
    scheduler: Recipe | None = None
    rewound: float | None = None

    def check(self) -> None:
        """Errors: ConfigError for an optimizer or scheduler that cannot be built from its arguments."""
        try:
            self.configure(torch.nn.Linear(1, 1), 100)
        except (TypeError, ValueError) as error:
            names = self.optimizer.target + (f", {self.scheduler.target}" if self.scheduler else "")
            raise ConfigError(f"{names}: {error}") from error

    def configure(self, module: torch.nn.Module, steps: int) -> dict[str, Any]:
        optimizer = self.optimizer.build([p for p in module.parameters() if p.requires_grad])
        schedule = self._scheduler(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> Any:
        whole = steps if self.rewound is None else max(steps, round(steps / self.rewound))
        if self.scheduler is None:
            return torch.optim.lr_scheduler.LambdaLR(optimizer, self._curve(whole, whole - steps))
        kind = locate(self.scheduler.target)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.lr_scheduler.LRScheduler)):
            raise ConfigError(
                f"a scheduler must be one of torch.optim.lr_scheduler's; got {self.scheduler.target}"
            )
        if issubclass(kind, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError(
                "a scheduler is stepped without a metric; ReduceLROnPlateau needs one: take another"
            )
        missing = set(TOTALS) & set(inspect.signature(kind).parameters) - set(
            self.scheduler.arguments
        )
        if "epochs" in self.scheduler.arguments:
            missing = set()
        found = self.scheduler.build(optimizer, **dict.fromkeys(missing, whole))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no optimizer has stepped yet is what is meant
            for _ in range(whole - steps):
                found.step()
        return found

    def _curve(self, whole: int, begin: int) -> Callable[[int], float]:
        rise = max(1, round(self.warmup * whole))

        def factor(step: int) -> float:
            at = begin + step
            if at < rise:
                return (at + 1) / (rise + 1)
            return 0.5 * (1.0 + math.cos(math.pi * (at - rise) / max(1, whole - rise)))

        return factor


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
) -> int:
    """Train for `rounds` x `round_steps` optimizer steps; after each one validate and ask `on_round` whether to go on.

    Returns the rounds done. The caller seeds torch's RNG. `callbacks` are Lightning's, see sparse.py for training under
    masks. With `accumulate` each batch goes through the model in that many parts, whose gradients make one step.
    Meanwhile the weights lie in memory in the one of `FORMATS`, afterwards as usual.
    Errors: DivergedError on a loss that is not finite.
    """
    watch = _Rounds(round_steps, on_round)
    steps = rounds * round_steps
    validated = val is not None and on_round is not None
    task.train()  # Lightning keeps the mode it finds, and in eval mode batch norms do not hold training together
    with _quiet(), _optimized(task, optimization, steps):
        trainer = Trainer(
            max_steps=steps,
            gradient_clip_val=optimization.clip_norm,
            callbacks=[*callbacks, watch],
            accumulate_grad_batches=accumulate,
            val_check_interval=round_steps * accumulate if validated else None,
            check_val_every_n_epoch=None if validated else 1,
            limit_val_batches=None if validated else 0,
            **_plain(device),
        )
        task.model.to(memory_format=FORMATS[memory_format])  # type: ignore[operator, union-attr]
        try:
            trainer.fit(task, in_parts(batches, accumulate), val if validated else None)
        finally:
            task.model.to(memory_format=torch.contiguous_format)  # type: ignore[operator, union-attr]
    return watch.rounds if validated else rounds


def evaluate(
    task: LightningModule, batches: Iterable[Any], device: torch.device
) -> dict[str, float]:
    """Metrics of the task over all batches, by name."""
    with _quiet():
        return dict(Trainer(**_plain(device)).validate(task, batches, verbose=False)[0])


@contextmanager
def _optimized(task: LightningModule, optimization: Optimization, steps: int) -> Iterator[None]:
    """As LightningCLI does: the optimizer and its schedule belong to the phase, not to the task."""
    task.configure_optimizers = lambda: optimization.configure(task.model, steps)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del task.configure_optimizers


class _Rounds(Callback):
    def __init__(self, round_steps: int, on_round: OnRound | None) -> None:
        self.round_steps, self.on_round, self.rounds = round_steps, on_round, 0

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        # one look per round, not per step: reading the loss waits for an accelerator
        if trainer.global_step % self.round_steps == 0 and not math.isfinite(
            float(outputs["loss"])
        ):
            raise DivergedError(
                f"the training loss became {float(outputs['loss'])} at step {trainer.global_step}"
            )

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self.rounds += 1
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.on_round is not None and not self.on_round(self.rounds, metrics):
            trainer.should_stop = True


def _plain(device: torch.device) -> dict[str, Any]:
    """A Trainer that writes nothing and prints nothing: records and progress are the orchestrator's."""
    return {
        "accelerator": "cpu"
        if device.type == "cpu"
        else "gpu"
        if device.type == "cuda"
        else device.type,
        "devices": 1 if device.index is None else [device.index],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "inference_mode": False,  # tensors made in it could not be trained afterwards
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's remarks on loader workers and log intervals do not apply to in-memory batches."""
    log = logging.getLogger("pytorch_lightning")
    before = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*")
        warnings.filterwarnings(
            "ignore", message=r".*(does not have many workers|isinstance\(treespec).*"
        )
        try:
            yield
        finally:
            log.setLevel(before)
