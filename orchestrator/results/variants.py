"""Which studies are the same but for the seed, and what tells the others apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CHANCE = ("seed", "phases.confirm.seeds")
"""Keys in which repetitions of one study differ."""
_PLACES = ("study", "tracking", "job", "select", "workers", "device", "threads")
"""Parts that change where and how long a study runs, not what it searches."""
MOST_NAMED = 3
"""Differences that a label names."""


def variants(configs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """A label for each study; repetitions with other seeds have the same one.

    It says the values of the keys in which the variants differ. Where there is one variant, or
    nothing else tells two apart, it is the study's name.
    """
    flat = [_without_chance(_leaves(config)) for config in configs]
    differing = []
    for key in sorted({key for config in flat for key in config}):
        values = {repr(config.get(key)) for config in flat}
        if len(values) > 1:
            differing.append(key)
    telling = _telling(differing)
    labels = []
    for config, name in zip(flat, names, strict=True):
        parts = [f"{key.removesuffix('.name')}={config.get(key)}" for key in telling]
        labels.append(", ".join(parts) or name)
    if not telling and len(configs) > 1:
        return [_stem(names)] * len(names)
    return _apart(labels, flat, differing, names)


def _telling(differing: Sequence[str]) -> list[str]:
    """The keys that a label names: a name says more than the values that come with it."""
    named = [key for key in differing if key.endswith(".name")]
    parts = {key.partition(".")[0] for key in named}
    others = [key for key in differing if key.partition(".")[0] not in parts]
    return [*named, *others][:MOST_NAMED]


def _apart(
    labels: Sequence[str],
    flat: Sequence[Mapping[str, Any]],
    differing: Sequence[str],
    names: Sequence[str],
) -> list[str]:
    """Labels that differ where the studies differ in a key that no label names."""
    values = [tuple([repr(config.get(key)) for key in differing]) for config in flat]
    apart = []
    for label, name in zip(labels, names, strict=True):
        alike = {other for mark, other in zip(labels, values, strict=True) if mark == label}
        apart.append(f"{label} ({name})" if len(alike) > 1 else label)
    return apart


def _stem(names: Sequence[str]) -> str:
    """What the names of repetitions begin with."""
    first, last = min(names), max(names)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return first[:shared].rstrip("-_.0123456789") or first


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _without_chance(leaves: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in leaves.items():
        if key not in CHANCE and key.partition(".")[0] not in _PLACES:
            kept[key] = value
    return kept
