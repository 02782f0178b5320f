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

    `rule` is the unit of the thresholds: `absolute` scores, multiples of the `mean` or `median` score of the pool's
    living units, or the `quantile`: the fraction of the pool's *dense* units removed, rounded to whole units. Without
    `pools` each group is a pool of its own (local scope). A ranking over several groups leaves each its best unit.
    Errors: PlanError for unknown or missing groups, for scores that are not finite, for an emptied group, and for
    different thresholds within a pool.
    """
    names = {group.name for group in structure.groups}
    if unknown := sorted(set(thresholds) - names):
        raise PlanError(f"thresholds name unknown groups {unknown}; the model has {sorted(names)}")
    require_finite(structure, scores, alive)
    kept = np.zeros(len(structure.groups), dtype=np.int64)
    for pool in pools or [[index] for index in range(len(structure.groups))]:
        found = {thresholds.get(structure.groups[index].name, 0.0) for index in pool}
        if len(found) > 1:
            raise PlanError(
                f"groups compared with one another share one threshold; '{structure.groups[pool[0]].name}' and "
                f"{len(pool) - 1} others have {sorted(found)}; give them the same, or use method.scope=local"
            )
        _count_pool(structure, scores, alive, pool, found.pop(), rule, kept)
    return kept


def _count_pool(
    structure: Structure, scores: Scores, alive: Keep, pool: Sequence[int], threshold: float, rule: Rule, kept: Counts
) -> None:
    """Fill in `kept` for the groups of one pool."""
    groups = [structure.groups[index] for index in pool]
    living = [scores[group.units][alive[group.units]] for group in groups]
    together = np.concatenate(living) if len(living) > 1 else living[0]
    if rule == "quantile":
        size = sum(group.size for group in groups)
        wanted = min(len(together), size - round(threshold * size))
        if len(pool) == 1:
            found = [wanted]
        else:
            chosen = np.zeros(len(together), dtype=np.bool_)
            chosen[np.argsort(-together, kind="stable")[:wanted]] = True
            ends = np.cumsum([len(part) for part in living])[:-1]
            found = [int(part.sum()) for part in np.split(chosen, ends)]
    else:
        scale = {"absolute": 1.0, "mean": float(np.mean(together)), "median": float(np.median(together))}[rule]
        found = [int(np.sum(part >= threshold * scale)) if threshold > 0.0 else len(part) for part in living]
    for index, group, count in zip(pool, groups, found, strict=True):
        least = int(structure.least[index])
        if count < least and len(pool) == 1:
            raise PlanError(
                f"a plan must keep at least one unit of every group; threshold {threshold:g} ({rule}) empties "
                f"'{group.name}' of {group.size} units; lower it"
            )
        kept[index] = max(least, count)


def require_finite(structure: Structure, scores: Scores, alive: Keep) -> None:
    """Errors: PlanError that names the first group with a living unit whose score is NaN or infinite."""
    wrong = alive & ~np.isfinite(scores)
    if not wrong.any():
        return
    for group in structure.groups:
        if count := int(wrong[group.units].sum()):
            raise PlanError(f"scores must be finite; group '{group.name}' has {count} that are not")


def normalised(structure: Structure, scores: Scores, alive: Keep) -> Scores:
    """Scores as multiples of their group's mean over living units; as they are where that is not positive."""
    out = scores.copy()
    for group in structure.groups:
        living = scores[group.units][alive[group.units]]
        mean = float(living.mean()) if len(living) else 0.0
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
        order = np.argsort(-scores[group.units][living], kind="stable")
        keep[group.start + living[order[: int(kept[index])]]] = True
    return keep
