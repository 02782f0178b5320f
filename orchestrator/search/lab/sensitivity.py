"""The sensitivity profile: what each group costs alone, measured once per model and method."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.phases.recalibration import recalibrate
from lightning_modules.pruning.thresholds import choose
from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.search.lab.judge import Judge
from orchestrator.search.lab.lab import Lab
from orchestrator.search.space.allocation import PROFILED_RATIO, Sensitivity
from orchestrator.search.trials.methods import PreparedStage
from orchestrator.search.trials.pruners import UnitPruner, WeightPruner
from orchestrator.seeds import Stream, seed_of
from orchestrator.stored import read_cache


def profile(
    lab: Lab, stage: PreparedStage, folder: Path, tick: Callable[[int, int], None]
) -> Sensitivity:
    """Divergence of the outputs per group on training data after recalibration.

    It is kept in `folder`, and read back where it was measured before. `tick` is called with
    (groups done, groups). A group that is too small to lose a unit costs nothing.
    """
    settings = lab.phases.profile
    groups = stage.pruner.structure.groups
    sizes = [[group.name, group.size] for group in groups]
    scored = [stage.settings.scoring(), stage.settings.granularity, stage.settings.shape]
    key = digest([lab.facts.dense_digest, scored, PROFILED_RATIO, settings.batches, sizes])
    path = folder / f"sensitivity-{key}.json"
    stored = read_cache(path, lambda data: _parsed(data, len(sizes)))
    if stored is not None:
        return stored
    with lab.timed("profile"):
        measured = _measure(lab, stage.pruner, tick)
    _write(path, measured, [group.name for group in groups])
    return measured


def _parsed(data: Any, groups: int) -> Sensitivity:
    loss = np.array(data["loss"], dtype=np.float64)
    if loss.shape != (groups,) or not np.isfinite(loss).all():
        raise ValueError(f"a profile of {groups} groups has another shape, or is not finite")
    return Sensitivity(loss)


def _measure(
    lab: Lab, pruner: UnitPruner | WeightPruner, tick: Callable[[int, int], None]
) -> Sensitivity:
    settings = lab.phases.profile
    structure = pruner.structure
    dense = lab.facts.model
    seed = seed_of(lab.seed, Stream.PROFILE)
    batches = islice(lab.data.train_batches(seed), settings.batches)
    inputs = list(lab.inputs(dense, batches))
    judge = Judge(lab, inputs, "space.equal_loss")
    full = structure.full()
    scores = pruner.scores(dense, full, seed)
    loss = np.zeros(len(structure.groups))
    for index, group in enumerate(structure.groups):
        kept = structure.sizes
        kept[index] = max(structure.least[index], round(group.size * (1.0 - PROFILED_RATIO)))
        if kept[index] < group.size:
            model = pruner.prune(dense, full, choose(structure, scores, full, kept), seed)
            recalibrate(model, inputs, settings.batches, lab.device)
            loss[index] = judge(model)
        tick(index + 1, len(structure.groups))
    return Sensitivity(loss)


def _write(path: Path, measured: Sensitivity, groups: list[str]) -> None:
    document = {"groups": groups, "ratio": PROFILED_RATIO, "loss": measured.loss.tolist()}
    write_atomic(path, json.dumps(document, indent=1))
