"""From scores and thresholds to the units kept: keep iff score >= threshold.

Counts come first, on the scores of the dense model, and are what a plan promises (its FLOPs are a function of them);
which units make up the count is decided at every pruning step, on the weights of that moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lightning_modules.errors import PlanError
from lightning_modules.pruning.plan import Rule
from lightning_modules.pruning.schedules import SCHEDULES
from lightning_modules.pruning.structure import Counts, Keep, Structure

Scores = npt.NDArray[np.float64]
"""Higher = keep; shape (n_units,); only the units a model still has are looked at."""
Pools = Sequence[Sequence[int]]
"""Groups (by index) whose units are compared with one another; every group is in one pool."""


def counts(
    structure: Structure,
    scores: Scores,
    alive: Keep,
    thresholds: Mapping[str, float],
    rule: Rule,
    pools: Pools | None = None,
) -> Counts:
    """Units that each group keeps; shape (n_groups,).

    `rule` is the unit of the thresholds: `absolute` scores, multiples of the `mean` or `median` of the pool's living
    scores (of their magnitudes, where a criterion gives negative ones), or the `quantile`: the fraction of the pool's
    *dense* units removed, rounded to whole units. A group without a threshold, or with 0, keeps what it has. Without
    `pools` each group is a pool of its own (local scope). A ranking over several groups leaves each its best unit, at
    the cost of the others.
    Errors: PlanError for unknown groups, for scores that are not finite, for an emptied group, and for different
    thresholds within a pool.
    """
    names = {group.name for group in structure.groups}
    if unknown := sorted(set(thresholds) - names):
        raise PlanError(f"thresholds name unknown groups {unknown}; the model has {sorted(names)}")
    require_finite(structure, scores, alive)
    kept, least = np.zeros(len(structure.groups), dtype=np.int64), structure.least
    for pool in pools or [[index] for index in range(len(structure.groups))]:
        groups = [structure.groups[index] for index in pool]
        levels = sorted({thresholds.get(group.name, 0.0) for group in groups})
        if len(levels) > 1:
            raise PlanError(
                f"groups compared with one another share one threshold; '{groups[0].name}' and {len(pool) - 1} others "
                f"have {levels}; give them the same, or use method.scope=local"
            )
        living = [scores[group.units][alive[group.units]] for group in groups]
        if rule == "quantile":
            dense = sum(group.size for group in groups)
            found = _highest(living, least[list(pool)], max(0, dense - round(levels[0] * dense)))
        else:
            found = _at_least(living, levels[0], rule)
        if len(pool) == 1 and found[0] < least[pool[0]]:
            raise PlanError(
                f"a plan must keep at least one unit of every group; threshold {levels[0]:g} ({rule}) empties "
                f"'{groups[0].name}' of {groups[0].size} units; lower it"
            )
        kept[list(pool)] = np.maximum(found, least[list(pool)])
    return kept


def _at_least(living: Sequence[Scores], threshold: float, rule: Rule) -> Counts:
    """How many scores of each part reach the threshold; all of them where it is 0."""
    if threshold <= 0.0 or not any(len(part) for part in living):
        return np.array([len(part) for part in living], dtype=np.int64)
    sizes = np.abs(np.concatenate(living))
    scale = {"absolute": 1.0, "mean": float(np.mean(sizes)), "median": float(np.median(sizes))}[
        rule
    ]
    return np.array([np.sum(part >= threshold * scale) for part in living], dtype=np.int64)


def _highest(living: Sequence[Scores], least: Counts, wanted: int) -> Counts:
    """How many of the `wanted` highest scores lie in each part; in one of several, its best comes first of all."""
    if len(living) == 1:
        return np.array([min(wanted, len(living[0]))], dtype=np.int64)
    parts = [part.copy() for part in living]
    for part, few in zip(parts, least, strict=True):
        if few:
            part[np.argmax(part)] = np.inf
    chosen = _top(np.concatenate(parts), wanted)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return np.array([part.sum() for part in np.split(chosen, ends)], dtype=np.int64)


def _top(values: Scores, count: int) -> Keep:
    """True for the `count` highest; of equals the first. A partition, not a sort: there may be millions of weights."""
    if count >= len(values) or count <= 0:
        return np.full(len(values), count > 0)
    lowest = np.partition(values, len(values) - count)[len(values) - count]
    chosen: Keep = values > lowest
    chosen[np.flatnonzero(values == lowest)[: count - int(chosen.sum())]] = True
    return chosen


def require_finite(structure: Structure, scores: Scores, alive: Keep) -> None:
    """Errors: PlanError that names the first group with a living unit whose score is NaN or infinite."""
    wrong = alive & ~np.isfinite(scores)
    if not wrong.any():
        return
    for group in structure.groups:
        if count := int(wrong[group.units].sum()):
            raise PlanError(f"scores must be finite; group '{group.name}' has {count} that are not")


def normalised(structure: Structure, scores: Scores, alive: Keep) -> Scores:
    """Scores over their group's mean magnitude among living units, which is then 1; all zeros stay so.

    Of scores that are not negative this is the multiple of the mean; those of either sign keep it.
    """
    out = scores.copy()
    for group in structure.groups:
        mean = (
            float(np.abs(scores[group.units][alive[group.units]]).mean())
            if alive[group.units].any()
            else 0.0
        )
        if mean > 0.0:
            out[group.units] = scores[group.units] / mean
    return out


def quantiles(structure: Structure, kept: Counts) -> dict[str, float]:
    """The `quantile` thresholds that keep exactly these counts."""
    return {group.name: 1.0 - int(kept[i]) / group.size for i, group in enumerate(structure.groups)}


def rounded(structure: Structure, kept: Counts, multiple: int) -> Counts:
    """Counts rounded up to a `multiple` (8 or 16 suit hardware), at most the group's size: never more is removed."""
    if multiple == 1:
        return kept
    up = -(-kept // multiple) * multiple
    return np.minimum(up, structure.sizes)


def at_step(before: Counts, final: Counts, schedule: str, step: int, steps: int) -> Counts:
    """Units kept per group after pruning step `step` (1-based) of `steps`: whole units, exact at the end."""
    return at_fraction(before, final, SCHEDULES[schedule](step / steps))


def at_fraction(before: Counts, final: Counts, fraction: float) -> Counts:
    """Units kept per group at `fraction` of the way from `before` to `final`, in whole units.

    Beyond the end (fraction > 1) a unit is still left of every group that keeps one in the end.
    """
    removed: Counts = np.rint((before - final) * fraction).astype(np.int64)
    left: Counts = np.maximum(before - removed, np.minimum(final, 1))
    return left


def choose(structure: Structure, scores: Scores, alive: Keep, kept: Counts) -> Keep:
    """Of every group the `kept[i]` living units with the highest scores; ties go to the lower unit id."""
    keep = np.zeros_like(alive)
    for index, group in enumerate(structure.groups):
        living = np.flatnonzero(alive[group.units])
        keep[group.start + living[_top(scores[group.units][living], int(kept[index]))]] = True
    return keep
