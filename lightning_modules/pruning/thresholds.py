"""From scores and thresholds to the units kept: a unit is kept iff score >= threshold.

Counts come first. They are read on the scores of the dense model, and they are what a plan
promises, because its FLOPs are a function of them. Which units make up the count is decided at
every pruning step, on the weights of that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lightning_modules.errors import PlanError
from lightning_modules.pruning.plan import Rule
from lightning_modules.pruning.structure import Counts, Group, Keep, Structure

Scores = npt.NDArray[np.float64]
"""Higher = keep; shape (n_units,). Only the scores of units that a model still has matter."""
Pools = Sequence[Sequence[int]]
"""Groups, by index, whose units are compared with one another; every group is in one pool."""


def counts(
    structure: Structure,
    scores: Scores,
    alive: Keep,
    thresholds: Mapping[str, float],
    rule: Rule,
    pools: Pools | None = None,
) -> Counts:
    """Units that each group keeps; shape (n_groups,).

    `rule` is the scale of the thresholds. `absolute`: they are scores. `mean`, `median`: they are
    multiples of the mean or median of the pool's living scores, or of their magnitudes where a
    criterion gives negative scores. `quantile`: they are the fraction of the pool's *dense* units
    that is removed, rounded to whole units. A group without a threshold, or with 0, keeps what it
    has.

    Without `pools` each group is a pool of its own (local scope). A ranking over several groups
    leaves each group its best unit, at the cost of the others.
    Errors: PlanError for unknown groups, for scores that are not finite, for an emptied group, and
    for different thresholds within a pool.
    """
    _require_known(structure, thresholds)
    require_finite(structure, scores, alive)
    kept = np.zeros(len(structure.groups), dtype=np.int64)
    for pool in pools or _singles(structure):
        kept[list(pool)] = _pool_counts(structure, scores, alive, thresholds, rule, list(pool))
    return kept


def _pool_counts(
    structure: Structure,
    scores: Scores,
    alive: Keep,
    thresholds: Mapping[str, float],
    rule: Rule,
    pool: list[int],
) -> Counts:
    """Units that each group of one pool keeps; shape (len(pool),)."""
    groups = [structure.groups[index] for index in pool]
    least = np.array([group.least for group in groups], dtype=np.int64)
    threshold = _common_threshold(groups, thresholds)
    living = [scores[group.units][alive[group.units]] for group in groups]
    if rule == "quantile":
        reached = _highest(living, least, _left_by_quantile(groups, threshold))
    else:
        reached = _at_least(living, threshold, rule)
    if len(groups) == 1 and reached[0] < least[0]:
        raise PlanError(
            f"a plan must keep at least one unit of every group; threshold {threshold:g} ({rule}) "
            f"empties '{groups[0].name}' of {groups[0].size} units; lower it"
        )
    return np.maximum(reached, least)


def _singles(structure: Structure) -> list[list[int]]:
    return [[index] for index in range(len(structure.groups))]


def _require_known(structure: Structure, thresholds: Mapping[str, float]) -> None:
    names = {group.name for group in structure.groups}
    unknown = sorted(set(thresholds) - names)
    if unknown:
        raise PlanError(f"thresholds name unknown groups {unknown}; the model has {sorted(names)}")


def _common_threshold(groups: Sequence[Group], thresholds: Mapping[str, float]) -> float:
    """The threshold of a pool. Errors: PlanError if its groups have different ones."""
    levels = sorted({thresholds.get(group.name, 0.0) for group in groups})
    if len(levels) > 1:
        raise PlanError(
            f"groups compared with one another share one threshold; '{groups[0].name}' and "
            f"{len(groups) - 1} others have {levels}; give them the same, or use method.scope=local"
        )
    return levels[0]


def _left_by_quantile(groups: Sequence[Group], quantile: float) -> int:
    """The number of units that a quantile of removed dense units leaves."""
    dense = sum(group.size for group in groups)
    return max(0, dense - round(quantile * dense))


def _one(magnitudes: Scores) -> float:
    return 1.0


_SCALES: dict[str, Callable[[Scores], float]] = {
    "absolute": _one,
    "mean": np.mean,
    "median": np.median,
}
"""What a threshold is a multiple of, as a function of the magnitudes of scores."""


def _lengths(parts: Sequence[Scores]) -> Counts:
    return np.array(list(map(len, parts)), dtype=np.int64)


def _at_least(living: Sequence[Scores], threshold: float, rule: Rule) -> Counts:
    """How many scores of each part reach the threshold; all of them if it is 0."""
    if threshold <= 0.0 or not _lengths(living).any():
        return _lengths(living)
    magnitudes = np.abs(np.concatenate(living))
    level = threshold * float(_SCALES[rule](magnitudes))
    reached = [np.sum(part >= level) for part in living]
    return np.array(reached, dtype=np.int64)


def _highest(living: Sequence[Scores], least: Counts, wanted: int) -> Counts:
    """How many of the `wanted` highest scores lie in each part.

    Of several parts, each that keeps at least one unit has its best one taken first.
    """
    if len(living) == 1:
        return np.array([min(wanted, len(living[0]))], dtype=np.int64)
    parts = [part.copy() for part in living]
    for part, few in zip(parts, least, strict=True):
        if few:
            part[np.argmax(part)] = np.inf
    chosen = _top(np.concatenate(parts), wanted)
    ends = np.cumsum(_lengths(parts))[:-1]
    per_part = map(np.sum, np.split(chosen, ends))
    return np.array(list(per_part), dtype=np.int64)


def _top(values: Scores, count: int) -> Keep:
    """True for the `count` highest; of equals the first.

    A partition is faster than a sort, and there may be millions of weights.
    """
    if count >= len(values) or count <= 0:
        return np.full(len(values), count > 0)
    place = len(values) - count
    lowest = np.partition(values, place)[place]
    chosen: Keep = values > lowest
    missing = count - int(chosen.sum())
    ties = np.flatnonzero(values == lowest)
    chosen[ties[:missing]] = True
    return chosen


def require_finite(structure: Structure, scores: Scores, alive: Keep) -> None:
    """Errors: PlanError that names the first group with a living unit whose score is not finite."""
    wrong = alive & ~np.isfinite(scores)
    if not wrong.any():
        return
    for group in structure.groups:
        count = int(wrong[group.units].sum())
        if count:
            raise PlanError(f"scores must be finite; group '{group.name}' has {count} that are not")


def normalised(structure: Structure, scores: Scores, alive: Keep) -> Scores:
    """Scores over the mean magnitude of their group's living units, which then is 1.

    Scores that are all zero stay so. Scores that are not negative become multiples of their mean;
    scores of either sign keep their sign.
    """
    out = scores.copy()
    for group in structure.groups:
        living = scores[group.units][alive[group.units]]
        if len(living) == 0:
            continue
        mean = float(np.abs(living).mean())
        if mean > 0.0:
            out[group.units] = scores[group.units] / mean
    return out


def quantiles(structure: Structure, kept: Counts) -> dict[str, float]:
    """The `quantile` thresholds that keep exactly these counts, by group."""
    thresholds = {}
    for group, count in zip(structure.groups, kept, strict=True):
        thresholds[group.name] = 1.0 - int(count) / group.size
    return thresholds


def rounded(structure: Structure, kept: Counts, multiple: int) -> Counts:
    """Counts rounded up to a `multiple`, at most to the group's size; 8 or 16 suit hardware.

    Rounding never removes more units.
    """
    if multiple == 1:
        return kept
    up = -(-kept // multiple) * multiple
    return np.minimum(up, structure.sizes)


def at_fraction(before: Counts, final: Counts, fraction: float) -> Counts:
    """Whole units kept per group at `fraction` of the way from `before` to `final`.

    Beyond the end (fraction > 1) one unit is left of every group that keeps one in the end.
    """
    removed: Counts = np.rint((before - final) * fraction).astype(np.int64)
    left: Counts = np.maximum(before - removed, np.minimum(final, 1))
    return left


def choose(structure: Structure, scores: Scores, alive: Keep, kept: Counts) -> Keep:
    """The `kept[i]` living units of each group with the highest scores.

    Of equal scores the lower unit id is kept.
    """
    keep = np.zeros_like(alive)
    for index, group in enumerate(structure.groups):
        living = np.flatnonzero(alive[group.units])
        best = _top(scores[group.units][living], int(kept[index]))
        keep[group.start + living[best]] = True
    return keep
