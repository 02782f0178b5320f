"""What every process that runs trials makes before its first: the methods, the space, what
evaluates a plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_modules.errors import DataError
from orchestrator.progress import Progress
from orchestrator.search.lab.facts import Facts
from orchestrator.search.lab.lab import Lab
from orchestrator.search.lab.sensitivity import profile
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.space import Choices, Terrain
from orchestrator.search.space.outline import within_study
from orchestrator.search.studies.orphans import plans_told
from orchestrator.search.studies.study import Rules
from orchestrator.search.studies.trial import Study
from orchestrator.search.trials.methods import PreparedMethod, prepare_method
from orchestrator.settings import Settings

DENSE, OVER = "dense", "over"
"""Of the study: the digest of the dense weights, once they are there, and whether its search has
ended.
"""


@dataclass(frozen=True)
class Ready:
    """The methods, and the terrain of each in the same order; trials are proposed on the first
    one.
    """

    space: Choices
    methods: tuple[PreparedMethod, ...]
    terrains: tuple[Terrain, ...]

    @property
    def terrain(self) -> Terrain:
        return self.terrains[0]


def make_ready(settings: Settings, lab: Lab, space: Any, progress: Progress) -> Ready:
    """Each method prepared and, where the space asks for it, its sensitivity profiled."""
    methods: list[PreparedMethod] = []
    terrains: dict[str, Terrain] = {}
    for choice in settings.method.choices():
        method = prepare_method(lab, choice)
        methods.append(method)
        sensitivity = None
        if space.needs_profile:
            stage = method.stages[0]
            groups = len(stage.pruner.structure.groups)
            progress.phase("sensitivity", f"{choice.name}: {groups} groups, each alone")
            sensitivity = profile(
                lab,
                stage,
                settings.study.baselines,
                lambda done, of: progress.tick(f"{done} of {of} groups"),
            )
        terrains[choice.name] = within_study(method.terrain(lab, sensitivity), settings)
    choices = Choices(space, settings.method, terrains)
    return Ready(choices, tuple(methods), tuple(terrains.values()))


def store_of(settings: Settings, facts: Facts, study: Study) -> PlanStore:
    """The study's finished plans."""
    return PlanStore(settings.study.folder / "trials", facts, lambda: plans_told(study))


def rules_of(settings: Settings, facts: Facts, stopping: Any) -> Rules:
    """What the loop of trials needs beside the study."""
    return Rules(
        facts.goals,
        facts.dense_quality,
        stopping,
        settings.sampler,
        settings.seed,
        settings.study.max_failures,
        facts.scale,
    )


def require_one_dense(study: Study, facts: Facts) -> None:
    """Errors: DataError where trials of the study were pruned from other dense weights than those
    that are here now.

    A checkpoint was replaced under its path, or the dense model was trained anew to other bits:
    plans of two networks would stand on one front.
    """
    theirs = study.user_attrs.get(DENSE)
    ended = any(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    if ended and theirs not in (None, facts.dense_digest):
        raise DataError(
            f"a study prunes one dense network; the trials of '{study.study_name}' have the "
            f"weights {theirs[:12]}, now "
            f"they are {facts.dense_digest[:12]}: give the checkpoint (phases.train.checkpoint) or "
            "the folder of "
            "dense models (study.baselines) that it began with, or study.name another value"
        )


def require_same_dense(study: Study, facts: Facts) -> None:
    """Errors: DataError where this process has other dense weights than the study, whose plans
    would not fit.
    """
    theirs, ours = study.user_attrs[DENSE], facts.dense_digest
    if theirs != ours:
        raise DataError(
            "all processes of a study must begin from the same dense weights; study "
            f"'{study.study_name}' has "
            f"{theirs[:12]}, here are {ours[:12]}: put study.baselines and study.out on a disk "
            "that all of them share"
        )
