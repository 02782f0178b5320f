"""The sensitivity profile: what each group costs alone, measured once per model and method."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.phases.recalibration import recalibrate
from lightning_modules.pruning.inputs import Inputs, run
from lightning_modules.pruning.thresholds import choose
from lightning_modules.recipe import digest
from lightning_modules.tasks.contract import divergence_of
from orchestrator.files import write_atomic
from orchestrator.search.lab.problem import Problem, seed_of
from orchestrator.search.space.allocation import Sensitivity
from orchestrator.search.trials.methods import Method
from orchestrator.stored import kept


def profile(problem: Problem, method: Method, tick: Callable[[int, int], None]) -> Sensitivity:
    """Divergence of the outputs per group and ratio on training data after recalibration; read back where measured.

    `tick` is told (groups done, groups). Ratios that leave the count of a small group unchanged cost nothing.
    """
    settings = problem.settings
    how = settings.phases.profile
    first = method.stages[0]
    sizes = [[group.name, group.size] for group in first.pruner.structure.groups]
    what = [first.settings.scoring(), first.settings.granularity, first.settings.shape]
    key = digest([problem.dense_digest, what, how.model_dump(mode="json"), sizes])
    path = settings.study.baselines / f"sensitivity-{key}.json"
    if (stored := kept(path, lambda data: _parsed(data, len(sizes), len(how.ratios)))) is not None:
        return stored
    with problem.timed("profile"):
        found = _measure(problem, method, tick)
    _write(path, found, [group.name for group in first.pruner.structure.groups])
    return found


def _parsed(data: Any, groups: int, ratios: int) -> Sensitivity:
    found = Sensitivity(tuple(map(float, data["ratios"])), np.array(data["loss"], dtype=np.float64))
    if (
        found.loss.shape != (groups, ratios)
        or len(found.ratios) != ratios
        or not np.isfinite(found.loss).all()
    ):
        raise ValueError(
            f"a profile of {groups} groups at {ratios} ratios has another shape, or is not finite"
        )
    return found


def _measure(problem: Problem, method: Method, tick: Callable[[int, int], None]) -> Sensitivity:
    how, pruner = problem.settings.phases.profile, method.stages[0].pruner
    structure = pruner.structure
    seed = seed_of(problem.settings.seed, 1)
    batches = islice(problem.data.train_batches(seed), max(how.batches, how.recalibration_batches))
    inputs = list(problem.inputs(problem.model, batches))
    judge = _Judge(problem, inputs[: how.batches])
    full = structure.full()
    scores = pruner.scores(problem.model, full, seed)
    loss = np.zeros((len(structure.groups), len(how.ratios)))
    for index, group in enumerate(structure.groups):
        for place, ratio in enumerate(sorted(how.ratios)):
            kept = structure.sizes
            kept[index] = max(structure.least[index], round(group.size * (1.0 - ratio)))
            if kept[index] == group.size:
                continue
            model = pruner.prune(problem.model, full, choose(structure, scores, full, kept), seed)
            recalibrate(model, inputs, how.recalibration_batches, problem.device)
            loss[index, place] = judge(model)
        tick(index + 1, len(structure.groups))
    return Sensitivity(tuple(sorted(how.ratios)), loss)


class _Judge:
    """How far a model's outputs are from the dense model's on these inputs, as the task measures it."""

    def __init__(self, problem: Problem, inputs: Sequence[Inputs]) -> None:
        divergence = divergence_of(problem.task(problem.model))
        if divergence is None:
            raise ConfigError(
                "a space with equal_loss compares outputs, and the task has no divergence between them; take "
                "space.equal_loss=[0,0] or space=uniform"
            )
        self.divergence, self.inputs = divergence, inputs
        self.dense = [run(problem.model, batch) for batch in inputs]

    def __call__(self, model: nn.Module) -> float:
        """The mean over the batches."""
        pairs = zip(self.inputs, self.dense, strict=True)
        return float(
            np.mean(
                [float(self.divergence(run(model, batch), dense, 1.0)) for batch, dense in pairs]
            )
        )


def _write(path: Path, found: Sensitivity, groups: list[str]) -> None:
    write_atomic(
        path,
        json.dumps(
            {"groups": groups, "ratios": found.ratios, "loss": found.loss.tolist()}, indent=1
        ),
    )
