"""The options of Lightning's Trainer that a user may set, and what stands in for the others."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from lightning_modules.errors import ConfigError
from lightning_modules.quiet import quiet
from lightning_modules.recipe import nearest

OWNED = {
    "accelerator": "device says where to run",
    "devices": "device says where to run; with workers=N each GPU has trials of its own",
    "strategy": "one trial runs on one device; workers=N runs several trials at once",
    "num_nodes": "workers of one study may run on many machines: job=work",
    "logger": "tracking says where to record",
    "callbacks": "give your LightningModule `configure_callbacks`",
    "plugins": "trainer.precision says how precise",
    "max_epochs": "phases.train.epochs, phases.finetune.rounds and round_steps say how long",
    "min_epochs": "phases.train.epochs says how long",
    "max_steps": "phases.train.epochs and phases.finetune.round_steps say how long",
    "min_steps": "phases.train.epochs and phases.finetune.round_steps say how long",
    "max_time": "study.budget and study.trial_timeout say how long",
    "val_check_interval": "a round is validated at its end: phases.finetune.round_steps",
    "check_val_every_n_epoch": "a round is validated at its end: phases.finetune.round_steps",
    "gradient_clip_val": "phases.train.clip_norm and phases.finetune.clip_norm do it",
    "fast_dev_run": "job=check runs one batch through everything",
    "overfit_batches": "the data says what is trained on",
    "limit_train_batches": "the data says what is trained on",
    "limit_val_batches": "the data says what is validated on",
    "limit_test_batches": "the data says what is tested on",
    "limit_predict_batches": "nothing is predicted",
    "num_sanity_val_steps": "job=check validates one batch",
    "inference_mode": "the search trains what it has validated",
    "reload_dataloaders_every_n_epochs": "the data makes its batches for each training",
    "enable_checkpointing": "study.out keeps the models",
    "enable_progress_bar": "the orchestrator shows the progress",
    "enable_model_summary": "job=inspect shows the model",
    "enable_autolog_hparams": "tracking records the configuration",
    "log_every_n_steps": "tracking records each round",
    "default_root_dir": "study.out says where files go",
    "barebones": "the orchestrator sets what it leaves out",
}
"""Options that the search sets itself, and what does it in their place."""


@dataclass(frozen=True)
class TrainerOptions:
    """`given` are options of Lightning's Trainer, by name."""

    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accumulated(self) -> int:
        """Batches of the data that make one optimizer step."""
        return int(self.given.get("accumulate_grad_batches", 1))

    def in_training(self, parts: int) -> dict[str, Any]:
        """For a Trainer that gets each batch in so many parts."""
        return {**self.given, "accumulate_grad_batches": parts * self.accumulated}

    def in_evaluation(self) -> dict[str, Any]:
        """The options without that which only trains."""
        given = dict(self.given)
        given.pop("accumulate_grad_batches", None)
        return given

    def in_steps(self, batches: Iterable[Any]) -> Iterable[Any]:
        """The batches that make whole optimizer steps."""
        together = self.accumulated
        return batches if together == 1 else Complete(batches, together)

    def steps_per_epoch(self, batches: Any) -> int:
        """Optimizer steps in one pass over the batches.

        Errors: ConfigError where a pass has fewer batches than make a step.
        """
        together = self.accumulated
        if len(batches) < together:
            raise ConfigError(
                f"trainer.accumulate_grad_batches={together} makes a step of more batches than an "
                f"epoch has ({len(batches)}): take at most that many"
            )
        return len(batches) // together


PLAIN = TrainerOptions()


def check_options(options: Mapping[str, Any], device: torch.device) -> None:
    """Errors: ConfigError for an option that the search sets, is unknown, or does not fit."""
    known = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    for name, value in options.items():
        if name in OWNED:
            raise ConfigError(f"trainer.{name} is set by the search: {OWNED[name]}")
        if name not in known:
            raise ConfigError(
                f"trainer.{name}={value} is no option of Lightning's Trainer"
                f"{nearest(name, sorted(known - set(OWNED)))}"
            )
    if options.get("precision") == "16-mixed" and device.type == "cpu":
        raise ConfigError(
            "trainer.precision=16-mixed needs a GPU; the device is the CPU: take bf16-mixed"
        )
    try:
        with quiet():
            Trainer(**placed(device), **options, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        given = ", ".join([f"{name}={value}" for name, value in options.items()])
        raise ConfigError(f"Lightning's Trainer refuses trainer.{given}: {error}") from error


def placed(device: torch.device) -> dict[str, Any]:
    """A Trainer's arguments to run on this device alone."""
    return {
        "accelerator": "gpu" if device.type == "cuda" else device.type,
        "devices": 1 if device.index is None else [device.index],
    }


@dataclass(frozen=True)
class Complete:
    """The batches of a pass, without those at its end that do not make a whole step.

    Lightning would make a step of what is left over, and rounds would have more steps than asked.
    """

    batches: Any
    together: int

    def __len__(self) -> int:
        return len(self.batches) // self.together * self.together

    def __iter__(self) -> Iterator[Any]:
        return islice(self.batches, len(self))
