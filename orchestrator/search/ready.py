"""What every process that runs trials makes before its first: the methods, the space, what evaluates a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.errors import DataError
from orchestrator.progress import Progress
from orchestrator.search.lab.problem import Problem
from orchestrator.search.lab.sensitivity import profile
from orchestrator.search.space import Choices, Terrain
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.orphans import plans_told
from orchestrator.search.studies.study import Rules, Trials
from orchestrator.search.studies.trial import Study
from orchestrator.search.trials.evaluate import Evaluator
from orchestrator.search.trials.methods import Method, prepare_method

DENSE, OVER = "dense", "over"
"""Of the study: the digest of the dense weights, once they are there, and whether its search has ended."""


@dataclass(frozen=True)
class Ready:
    """`terrains` stand in the order of the methods; the first is the one that proposals are made on."""

    problem: Problem
    space: Choices
    terrains: tuple[Terrain, ...]
    evaluator: Evaluator

    def trials(self, study: Study, stopping: Any, leases: Leases, exchange: Exchange) -> Trials:
        """From now on plans are inherited from, and saved for, trials of this study alone."""
        settings, goals = self.problem.settings, self.problem.goals
        self.evaluator.told = lambda: plans_told(study)
        self.evaluator.may_save = leases.require
        rules = Rules(
            goals,
            self.problem.dense[goals.quality],
            stopping,
            settings.sampler,
            settings.seed,
            settings.study.max_failures,
            self.problem.scale,
        )
        return Trials(study, self.space, self.terrains[0], self.evaluator, rules, leases, exchange)


def make_ready(problem: Problem, space: Any, models: Path, progress: Progress) -> Ready:
    """Each method prepared and, where the space asks for it, its sensitivity profiled; `models`: finished plans."""
    methods: dict[str, Method] = {}
    terrains: dict[str, Terrain] = {}
    for way in problem.settings.method.choices():
        method = methods[way.name] = prepare_method(problem, way)
        sensitivity = None
        if space.needs_profile:
            groups = len(method.stages[0].pruner.structure.groups)
            progress.phase("sensitivity", f"{way.name}: {groups} groups, each alone")
            sensitivity = profile(
                problem, method, lambda done, of: progress.tick(f"{done} of {of} groups")
            )
        terrains[way.name] = method.terrain(problem, sensitivity)
    choices = Choices(space, problem.settings.method, terrains)
    return Ready(problem, choices, tuple(terrains.values()), Evaluator(problem, methods, models))


def require_one_dense(study: Study, problem: Problem) -> None:
    """Errors: DataError where trials of the study were pruned from other dense weights than those that are here now.

    A checkpoint was replaced under its path, or the dense model was trained anew to other bits: plans of two networks
    would stand on one front.
    """
    theirs = study.user_attrs.get(DENSE)
    ended = any(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    if ended and theirs not in (None, problem.dense_digest):
        raise DataError(
            f"a study prunes one dense network; the trials of '{study.study_name}' have the weights {theirs[:12]}, now "
            f"they are {problem.dense_digest[:12]}: give the checkpoint (phases.train.checkpoint) or the folder of "
            "dense models (study.baselines) that it began with, or study.name another value"
        )


def require_same_dense(study: Study, problem: Problem) -> None:
    """Errors: DataError where this process has other dense weights than the study, whose plans would not fit."""
    theirs, ours = study.user_attrs[DENSE], problem.dense_digest
    if theirs != ours:
        raise DataError(
            f"all processes of a study must begin from the same dense weights; study '{study.study_name}' has "
            f"{theirs[:12]}, here are {ours[:12]}: put study.baselines and study.out on a disk that all of them share"
        )
