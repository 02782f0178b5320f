"""The whole configuration as one frozen, validated value: what every job is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_serializer,
    model_validator,
)

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe, digest
from orchestrator.settings.budget import Budget, parse_budget, parse_time
from orchestrator.settings.messages import messages
from orchestrator.settings.method import ActivationSettings, MethodSettings
from orchestrator.settings.objectives import ObjectiveSettings
from orchestrator.settings.parts import AnyRecipe, Count, Part, Positive, Ratio
from orchestrator.settings.phases import (
    FinetuneSettings,
    GuardSettings,
    OptimizerSettings,
    PhaseSettings,
)
from orchestrator.settings.targets import FLOPS_TARGET, target_of
from orchestrator.settings.trainer import TrainerSettings

__all__ = [
    "ActivationSettings",
    "ChainSettings",
    "FinetuneSettings",
    "GuardSettings",
    "MadeUpSettings",
    "MethodSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "PhaseSettings",
    "SearchSettings",
    "Settings",
    "StudySettings",
    "TrainerSettings",
    "load",
]


def _optional_budget(value: Any) -> Any:
    return value if value is None else parse_budget(value)


def _optional_time(value: Any) -> Any:
    return value if value is None else parse_time(value)


class StudySettings(Part):
    """`name` is the folder under `out`; `storage` null means a journal file in that folder.

    A `budget` in time or epochs stands in for `n_trials` and sets how long each trial is finetuned.
    `lease` are the seconds without a sign of life after which a trial is taken over,
    `storage_patience` those for which a database may be away. Plans are files in a `folder` that
    all processes share, or artifacts in `mlflow`. A trial that runs out of memory is made once more
    with half the batch (`halve`), one that takes longer than `trial_timeout` fails, and where more
    than the share `max_failures` have failed the study stops.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    n_trials: Positive
    budget: Annotated[Budget | None, BeforeValidator(_optional_budget)] = None
    out: Path = Path("runs")
    baselines: Path = Path("baselines")
    storage: str | None = None
    storage_patience: Annotated[float, Field(ge=0.0)] = 600.0
    lease: Annotated[float, Field(gt=0.0)] = 60.0
    results: Literal["folder", "mlflow"] = "folder"
    trial_timeout: Annotated[Budget | None, BeforeValidator(_optional_time)] = None
    max_failures: Ratio = 0.5
    on_out_of_memory: Literal["halve", "fail"] = "halve"

    @field_serializer("budget", "trial_timeout")
    def _written(self, budget: Budget | None) -> str | None:
        return None if budget is None else budget.text

    @property
    def folder(self) -> Path:
        return self.out / self.name


def within_reach(smallest: float, largest: float, least: float) -> tuple[float, float]:
    """A range of FLOPs ratios laid out above `least`, the smallest that any plan reaches.

    Ends that lie below count as shares of the FLOPs that can be removed.
    """
    if smallest >= least:
        return smallest, largest
    smallest = least + (1.0 - least) * smallest
    if largest <= smallest:
        largest = least + (1.0 - least) * largest
    return smallest, largest


class ChainSettings(Part):
    """The chain a study begins with: `targets` FLOPs ratios from `largest` to `smallest`.

    They are log-spaced, and laid out above what can be reached. Where whole blocks are pruned, a
    target keeps FLOPs ratio^`depth` of them. Under a budget in time or epochs all targets get the
    same time, and at most `most_epochs`; what is left goes to the other targets, then to trials
    around the chain.
    """

    targets: Count = 8
    largest: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.7
    smallest: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    depth: Annotated[float, Field(ge=0.0)] = 1.0
    most_epochs: Annotated[float, Field(gt=0.0)] = 30.0

    @model_validator(mode="after")
    def _falls(self) -> ChainSettings:
        if self.smallest >= self.largest:
            raise ValueError(
                f"chain.smallest must be below chain.largest; got {self.smallest} and "
                f"{self.largest}"
            )
        return self

    def ratios(self, budget: float | None, least: float = 0.0) -> list[float]:
        """FLOPs ratios, large to small; under a `budget` the chain begins at the budget itself.

        `least` is the smallest ratio that a plan reaches.
        """
        smallest, top = within_reach(self.smallest, self.largest, least)
        if budget is not None:
            top = min(top, budget)
        if self.targets == 0:
            return []
        if top <= smallest:
            return [top]
        step = (smallest / top) ** (1 / max(1, self.targets - 1))
        return [top * step**index for index in range(self.targets)]


class SearchSettings(Part):
    """How a search makes use of plans.

    `lineage` lets a trial begin from a finished plan that contains it; without it all begin from
    the dense model. `warm_start` is the name of a study to begin with, `plans` are files of
    thresholds that are tried behind the chain. `allocations` untrained models are judged for each
    trial, to share out its units among the groups; 0: as the space says.
    """

    lineage: bool = True
    allocations: Count = 0
    warm_start: str | None = None
    plans: tuple[Path, ...] = ()
    chain: ChainSettings = ChainSettings()


_RECIPES = {"optimizer", "scheduler"}
_NEUTRAL = (
    "study",
    "tracking",
    "select",
    "job",
    "workers",
    "device",
    "threads",
    "memory_format",
    "quiet",
)
"""What no trial's result depends on."""
RECIPES = ("model", "data", "task", "space", "sampler", "stopping", "tracking", "select", "job")


class MadeUpSettings(Part):
    """A laboratory that trains nothing; see `orchestrator/search/lab/made_up.py`.

    `noise` is the standard deviation of the quality, `failures` the share of trainings that fail,
    `seconds` what an optimizer step takes.
    """

    noise: Annotated[float, Field(ge=0.0)] = 0.01
    failures: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    seconds: Annotated[float, Field(ge=0.0)] = 0.0


class Settings(Part):
    model: AnyRecipe
    data: AnyRecipe
    task: AnyRecipe
    method: MethodSettings
    space: AnyRecipe
    sampler: AnyRecipe
    stopping: AnyRecipe
    objectives: ObjectiveSettings
    phases: PhaseSettings
    tracking: AnyRecipe
    select: AnyRecipe
    job: AnyRecipe
    study: StudySettings
    search: SearchSettings = SearchSettings()
    seed: Count = 0
    workers: Positive = 1
    quiet: bool = False
    device: str = "auto"
    threads: Positive | Literal["auto"] | None = None
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    trainer: TrainerSettings = TrainerSettings()
    made_up: MadeUpSettings | None = None
    _command: str | None = PrivateAttr(None)

    @property
    def command(self) -> str | None:
        """The command line that was given, without secrets; None from Python."""
        return self._command

    @property
    def target(self) -> str:
        """What targets are ratios of, by the name of the parameter."""
        return target_of(self.method, self.objectives)

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        granularities = [method.granularity for method in self.method.choices()]
        if "unit" not in granularities:
            self._check_on_weights()
        phases = self.phases
        if phases.finetune.begin == "rewound" and phases.train.rewind_epoch is None:
            raise ValueError(
                "phases.finetune.begin=rewound needs phases.train.rewind_epoch, the epoch to go "
                "back to"
            )
        if phases.finetune.lr == "rewound" and phases.train.own:
            raise ValueError(
                "phases.finetune.lr=rewound follows the end of the dense training's curve, which "
                "phases.train.optimizer=own does not tell: take lr=finetune"
            )
        budget = self.study.budget
        plain = self._uncompensated()
        if self.search.allocations > 0:
            self._check_allocations(plain)
        if plain and "plain" in phases.confirm.baselines:
            raise ValueError(
                "phases.confirm.baselines: 'plain' is removal without compensation beside removal "
                f"with it, which method '{plain[0]}' has not: take method.compensate=true or leave "
                "it out"
            )
        if budget is not None and self.workers > 1:
            raise ValueError(
                f"a budget in time or epochs paces one process; study.budget={budget.text} with "
                f"workers={self.workers}: take workers=1, or a number of trials (study.n_trials)"
            )
        return self

    def _uncompensated(self) -> list[str]:
        """Names of the methods without compensation."""
        return [method.name for method in self.method.choices() if not method.compensate]

    def _check_allocations(self, plain: list[str]) -> None:
        """Errors: ValueError where untrained models say nothing, or are not paced."""
        if plain:
            raise ValueError(
                "search.allocations judges untrained models, which takes compensation; method "
                f"'{plain[0]}' has none: take method.compensate=true, or search.allocations=0"
            )
        if self.study.budget is not None:
            raise ValueError(
                "search.allocations takes time that a budget does not count; take study.n_trials "
                "in place of study.budget, or search.allocations=0"
            )

    def _check_on_weights(self) -> None:
        """Errors: ValueError for settings that only suit the removal of units."""
        objectives = self.objectives
        if "flops" in objectives.costs or objectives.axis != "effective_flops":
            raise ValueError(
                f"method '{self.method.name}' sets single weights to zero, which leaves FLOPs as "
                "they are; take objectives=quality_effective_flops, with other costs beside it as "
                "in objectives.costs=[effective_flops,latency_ms]"
            )
        if self.phases.sparsify is not None:
            raise ValueError(
                f"phases.sparsify trains units towards zero; method '{self.method.name}' prunes "
                "none"
            )

    def plain(self) -> dict[str, Any]:
        """The configuration as plain data, with every default written out."""
        recipes = {name: getattr(self, name).to_json() for name in RECIPES}
        phases = self.phases.model_dump(
            mode="json", exclude={"train": _RECIPES, "finetune": _RECIPES, "sparsify": True}
        )
        phases["train"] |= _plain_recipes(self.phases.train)
        phases["finetune"] |= _plain_recipes(self.phases.finetune)
        sparsify = self.phases.sparsify
        phases["sparsify"] = None
        if sparsify is not None:
            phases["sparsify"] = {
                "penalty": sparsify.penalty.to_json(),
                "rounds": sparsify.rounds,
            }
        rest = self.model_dump(mode="json", exclude={*RECIPES, "phases", "method"})
        return {**recipes, "method": self.method.plain(), "phases": phases, **rest}

    @property
    def depth(self) -> bool:
        """Whether whole blocks are pruned, too.

        The method says so or, where it does not, they are in a chain under a budget in time.
        """
        method = self.method.choices()[0]
        budget = self.study.budget
        chain = self.search.chain
        if not self._depth_is_open:
            return bool(self.method.depth or method.depth)
        if budget is None or budget.measure != "seconds":
            return False
        return chain.targets > 0 and chain.depth > 0.0

    def with_depth(self, depth: bool) -> Settings:
        """With whole blocks pruned or not where the method leaves that open."""
        if not self._depth_is_open:
            return self
        method = self.method.model_copy(update={"depth": depth})
        return self.model_copy(update={"method": method})

    @property
    def _depth_is_open(self) -> bool:
        method = self.method.choices()[0]
        return self.method.depth is None and method.depth is None and method.granularity == "unit"

    def model_name(self) -> str:
        """The name or folder given to the model's builder, or the last part of its path.

        Of a network inside of a LightningModule it is the name of that.
        """
        inside = self.model.arguments.get("module")
        target = inside.target if isinstance(inside, Recipe) else self.model.target
        builder = target.rpartition(".")[2]
        arguments = self.model.arguments
        named = arguments.get("name") or arguments.get("folder") or builder
        return Path(str(named)).name

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same search.

        It is everything that a trial's result depends on, and nothing about how many there are.
        """
        whole = self.plain()
        for name in _NEUTRAL:
            whole.pop(name)
        if self.trainer.standard:
            # studies from before there were options go on
            whole.pop("trainer")
        whole["phases"].pop("confirm")
        whole["method"]["depth"] = self.depth
        if self.target != FLOPS_TARGET:
            # an older study of latencies had targets of FLOPs, and is another search
            whole["target"] = self.target
        return whole

    def dense_digest(self) -> str:
        """The name of the dense baseline: model, data, task, how it was trained, and the seed."""
        train = self.phases.train
        recipe = {
            "optimizer": train.optimizer,
            "warmup": train.warmup,
            "clip": train.clip_norm,
            "epochs": train.epochs,
        }
        if train.scheduler is not None:
            recipe["scheduler"] = train.scheduler
        if train.rewind_epoch is not None:
            recipe["rewind_epoch"] = train.rewind_epoch
        if not self.trainer.standard:
            recipe["trainer"] = self.trainer.options()
        if self.made_up is not None:
            recipe["made_up"] = self.made_up.model_dump()
        checkpoint = None if train.checkpoint is None else str(train.checkpoint)
        return digest([self.model, self.data, self.task, recipe, checkpoint, self.seed])


def _plain_recipes(settings: OptimizerSettings) -> dict[str, Any]:
    scheduler = settings.scheduler
    return {
        "optimizer": settings.optimizer.to_json(),
        "scheduler": None if scheduler is None else scheduler.to_json(),
    }


def load(config: Mapping[str, Any], command: str | None = None) -> Settings:
    """Settings of a composed config, widths in multiples that suit the engine of a latency.

    Errors: ConfigError with every wrong key, its value and the nearest names.
    """
    try:
        settings = Settings.model_validate(dict(config))
    except ValidationError as error:
        raise ConfigError("\n".join(messages(error.errors(), Settings))) from error
    method = settings.method.with_rounding(settings.objectives.rounding)
    settings = settings.model_copy(update={"method": method})
    settings._command = command
    return settings
