"""What every process that runs trials makes before its first one.

These are the methods, the space, and what evaluates a plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lightning_modules.errors import DataError
from lightning_modules.pruning.structure import Counts
from orchestrator.progress import Progress
from orchestrator.search.lab.facts import Facts
from orchestrator.search.lab.lab import Lab
from orchestrator.search.lab.sensitivity import profile
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.space import Choices, SearchContext
from orchestrator.search.space.allocation import Sensitivity
from orchestrator.search.space.outline import within_study
from orchestrator.search.studies.orphans import plans_told
from orchestrator.search.studies.study import Rules
from orchestrator.search.studies.trial import Study
from orchestrator.search.trials.methods import PreparedMethod, prepare_method
from orchestrator.settings import Settings

DENSE = "dense"
"""Attribute of the study: the digest of the dense weights, once there are any."""
OVER = "over"
"""Attribute of the study: whether its search has ended."""


@dataclass(frozen=True)
class Ready:
    """The methods, and the context of each in the same order.

    Trials are proposed on the first context.
    """

    space: Choices
    methods: tuple[PreparedMethod, ...]
    contexts: tuple[SearchContext, ...]

    @property
    def context(self) -> SearchContext:
        return self.contexts[0]

    def with_allocations(self, allocations: Counts | None) -> Ready:
        """With these in place of equal ratios; see `SearchContext`."""
        contexts = {}
        for context in self.contexts:
            contexts[context.method] = replace(context, allocations=allocations)
        space = replace(self.space, contexts=contexts)
        return Ready(space, self.methods, tuple(contexts.values()))


def make_ready(settings: Settings, lab: Lab, space: Any, progress: Progress) -> Ready:
    """Each method prepared and, where the space asks for it, its sensitivity profiled."""
    methods: list[PreparedMethod] = []
    contexts: dict[str, SearchContext] = {}
    for choice in settings.method.choices():
        method = prepare_method(lab, choice)
        methods.append(method)
        sensitivity = _profiled(settings, lab, method, progress) if space.needs_profile else None
        contexts[choice.name] = within_study(
            method.context(lab, sensitivity), settings, lab.facts.target
        )
    choices = Choices(space, settings.method, contexts)
    return Ready(choices, tuple(methods), tuple(contexts.values()))


def _profiled(
    settings: Settings, lab: Lab, method: PreparedMethod, progress: Progress
) -> Sensitivity:
    """The sensitivity of the method's first stage."""
    stage = method.stages[0]
    groups = len(stage.pruner.structure.groups)
    progress.phase("sensitivity", f"{method.settings.name}: {groups} groups, each alone")

    def tick(done: int, of: int) -> None:
        progress.tick(f"{done} of {of} groups")

    return profile(lab, stage, settings.study.baselines, tick)


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
    """Checks that the study's trials were pruned from the dense weights of this process.

    They were not if a checkpoint was replaced under its path, or the dense model was trained anew
    to other bits: plans of two networks would stand on one front.
    Errors: DataError where they were pruned from others.
    """
    theirs = study.user_attrs.get(DENSE)
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state.is_finished()]
    if ended and theirs not in (None, facts.dense_digest):
        raise DataError(
            f"a study prunes one dense network; the trials of '{study.study_name}' have the "
            f"weights {theirs[:12]}, now they are {facts.dense_digest[:12]}: give the checkpoint "
            "(phases.train.checkpoint) or the folder of dense models (study.baselines) that it "
            "began with, or study.name another value"
        )


def require_same_dense(study: Study, facts: Facts) -> None:
    """Checks that this process has the dense weights of the study.

    Errors: DataError where it has others, to which the study's plans would not fit.
    """
    theirs = study.user_attrs[DENSE]
    ours = facts.dense_digest
    if theirs != ours:
        raise DataError(
            "all processes of a study must begin from the same dense weights; study "
            f"'{study.study_name}' has {theirs[:12]}, here are {ours[:12]}: put study.baselines "
            "and study.out on a disk that all of them share"
        )
