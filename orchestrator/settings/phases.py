"""Settings of the phases: training, sparsifying, finetuning, the profile, confirmation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.settings.parts import AnyRecipe, Count, OptimizerRecipe, Part, Positive


class OptimizerSettings(Part):
    """Any torch optimizer, and the course of its learning rate.

    The rate warms up linearly and falls along a cosine, or follows any `scheduler`. The optimizer
    `own` is what the task's `configure_optimizers` gives, with its scheduler.
    """

    optimizer: OptimizerRecipe
    scheduler: AnyRecipe | None = None
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None

    @property
    def own(self) -> bool:
        """Whether the task brings its optimizer and scheduler."""
        return self.optimizer.target == "own"

    @model_validator(mode="after")
    def _one_scheduler(self) -> OptimizerSettings:
        if self.own and self.scheduler is not None:
            raise ValueError(
                "optimizer=own brings the scheduler of the task's configure_optimizers: leave "
                "scheduler out"
            )
        return self


class TrainSettings(OptimizerSettings):
    """Training of the dense model.

    `rewind_epoch` keeps the weights after that epoch (0: untrained), to which weight rewinding goes
    back.
    """

    epochs: Count
    checkpoint: Path | None = None
    rewind_epoch: Count | None = None


class DistillationSettings(Part):
    """What finetuning learns from the dense model.

    `features` names modules whose attention maps are matched too.
    `mixed` copies of the training data with samples mixed by pairs are learnt beside it; `auto`: as
    many as a small part of a budget in time pays for where its targets are long, else none.
    """

    temperature: Annotated[float, Field(gt=0.0)] = 3.0
    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    mixed: Count | Literal["auto"] = "auto"
    features: tuple[str, ...] = ()

    @property
    def teaches(self) -> bool:
        """Whether anything of the dense model goes into the loss."""
        return self.weight > 0.0 or bool(self.features)

    @model_validator(mode="after")
    def _taught(self) -> DistillationSettings:
        if self.mixed not in (0, "auto") and self.weight == 0.0:
            raise ValueError(
                f"distillation.mixed={self.mixed} needs dense outputs to learn from: weight above "
                "0, or mixed=0"
            )
        return self


class GuardSettings(Part):
    """What happens when validation quality falls too far after a pruning step.

    That is: more than `tolerance` below the dense model's. `stop` ends the trial; `step_back` ends
    it with the model before that step; `slow_down` goes back and takes half the step, up to
    `retries` times.
    """

    tolerance: Annotated[float, Field(ge=0.0)]
    action: Literal["stop", "step_back", "slow_down"] = "step_back"
    retries: Positive = 2


class FinetuneSettings(OptimizerSettings):
    """Finetuning: a round of it is `round_steps` optimizer steps; with 0 nothing is finetuned.

    How many rounds a trial gets is in the space. `begin` says from which weights: those `kept`,
    those of `phases.train.rewind_epoch` (`rewound`), or `fresh` ones. `lr` is the finetuning's own
    (`finetune`) or the end of the dense training's curve (`rewound`).
    """

    round_steps: Count
    recalibration_batches: Count = 4
    distillation: DistillationSettings | None = DistillationSettings()
    begin: Literal["kept", "rewound", "fresh"] = "kept"
    lr: Literal["finetune", "rewound"] = "finetune"
    guard: GuardSettings | None = None


class SparsifySettings(Part):
    """Training under a penalty before the first pruning step.

    It has `rounds` rounds of finetuning's steps and optimizer.
    """

    penalty: AnyRecipe
    rounds: Positive = 1


class ProfileSettings(Part):
    """What each group costs alone.

    Norm statistics are refreshed and the divergence is measured on the same `batches` training
    batches.
    """

    batches: Positive = 2


class ConfirmSettings(Part):
    """Finetuning as in the search, over several `seeds`, then test data.

    `tolerance` is a multiple of the quality metric's scale: the validation data cannot tell apart
    models that differ by less.
    """

    seeds: tuple[int, ...] = (0, 1)
    rounds: Positive = 2
    max_models: Positive = 8
    tolerance: Annotated[float, Field(ge=0.0)] = 0.0
    baselines: tuple[Literal["uniform", "random", "global", "plain"], ...] = (
        "uniform",
        "random",
        "global",
    )

    @property
    def max_baseline_models(self) -> int:
        """To how many of the confirmed models each baseline is matched: half, rounded down.

        The three baselines together thus cost no more than one and a half times the front.
        """
        return max(1, self.max_models // 2)

    @field_validator("seeds")
    @classmethod
    def _spread(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < max(2, len(seeds)):
            raise ValueError(
                "needs two seeds or more, each once, since the spread of the results is taken over "
                "them, as in [0, 1]"
            )
        return seeds


class PhaseSettings(Part):
    train: TrainSettings
    finetune: FinetuneSettings
    sparsify: SparsifySettings | None = None
    profile: ProfileSettings = ProfileSettings()
    confirm: ConfirmSettings = ConfirmSettings()

    @property
    def untrained(self) -> bool:
        """Whether nothing is finetuned, so that every model is cut from the dense one."""
        return self.finetune.round_steps == 0
