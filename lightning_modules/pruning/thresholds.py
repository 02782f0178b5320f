"""From scores and thresholds to the units kept: keep iff score >= threshold.

Counts come first, on the scores of the dense model, and are what a plan promises (its FLOPs are a function of them);
which units make up the count is decided at every pruning step, on the weights of that moment.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lightning_modules.errors import PlanError
from lightning_modules.pruning.plan import Rule
from lightning_modules.pruning.schedules import SCHEDULES
from lightning_modules.pruning.structure import Counts, Keep, Structure

Scores = npt.NDArray[np.float64]
"""Higher = keep; shape (n_units,); only the units a model still has are looked at."""


def counts(structure: Structure, scores: Scores, alive: Keep, thresholds: Mapping[str, float], rule: Rule) -> Counts:
    """Units that each group keeps; shape (n_groups,).

    `rule` is the unit of the thresholds: `absolute` scores, multiples of the `mean` or `median` score of the group's
    living units, or the `quantile`: the fraction of the group's *dense* units removed, rounded to whole units.
    Errors: PlanError for unknown or missing groups, for scores that are not finite, and for an emptied group.
    """
    names = {group.name for group in structure.groups}
    if unknown := sorted(set(thresholds) - names):
        raise PlanError(f"thresholds name unknown groups {unknown}; the model has {sorted(names)}")
    kept = np.zeros(len(structure.groups), dtype=np.int64)
    for index, group in enumerate(structure.groups):
        living = scores[group.units][alive[group.units]]
        if not np.isfinite(living).all():
            raise PlanError(
                f"scores must be finite; group '{group.name}' has {np.sum(~np.isfinite(living))} that are not"
            )
        threshold = thresholds.get(group.name, 0.0)
        if rule == "quantile":
            kept[index] = min(len(living), group.size - round(threshold * group.size))
        else:
            scale = {"absolute": 1.0, "mean": float(np.mean(living)), "median": float(np.median(living))}[rule]
            kept[index] = np.sum(living >= threshold * scale) if threshold > 0.0 else len(living)
        if kept[index] < 1:
            raise PlanError(
                f"a plan must keep at least one unit of every group; threshold {threshold:g} ({rule}) empties "
                f"'{group.name}' of {group.size} units; lower it"
            )
    return kept


def quantiles(structure: Structure, kept: Counts) -> dict[str, float]:
    """The `quantile` thresholds that keep exactly these counts."""
    return {group.name: 1.0 - int(kept[i]) / group.size for i, group in enumerate(structure.groups)}


def at_step(before: Counts, final: Counts, schedule: str, step: int, steps: int) -> Counts:
    """Units kept per group after pruning step `step` (1-based) of `steps`: whole units, exact at the end."""
    fraction = SCHEDULES[schedule](step / steps)
    removed: Counts = np.rint((before - final) * fraction).astype(np.int64)
    return before - removed


def choose(structure: Structure, scores: Scores, alive: Keep, kept: Counts) -> Keep:
    """Of every group the `kept[i]` living units with the highest scores; ties go to the lower unit id."""
    keep = np.zeros_like(alive)
    for index, group in enumerate(structure.groups):
        living = np.flatnonzero(alive[group.units])
        order = np.argsort(-scores[group.units][living], kind="stable")
        keep[group.start + living[order[: int(kept[index])]]] = True
    return keep
