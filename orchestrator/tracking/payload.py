"""What one run sends to MLflow, made to fit its limits before anything is sent."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.redact import redact, redact_tree
from orchestrator.tracking import Point

PARAM_LENGTH = 6000
"""Characters of a param; the server cuts or refuses a longer one."""
TAG_LENGTH = 5000
"""Characters of a tag; 8000 since MLflow 2.11, but a server may be older."""
KEY_LENGTH = 250
"""Characters of a key."""
PARAMS_PER_BATCH = 100
"""Params in one request."""
TAGS_PER_BATCH = 100
"""Tags in one request."""
METRICS_PER_BATCH = 800
"""Metrics in one request; with params and tags these are the 1000 entities of a request."""
CUT_FILE = "cut_values.json"
"""Artifact with the whole values of those that were cut."""

Item = TypeVar("Item")

_log = logging.getLogger(__name__)


@dataclass
class Payload:
    """Params and tags as short strings, finite points, artifacts as text.

    All keys are such as the server accepts.
    """

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    artifacts: dict[str, str] = field(default_factory=dict)


def payload(
    params: Mapping[str, object],
    tags: Mapping[str, str],
    metrics: Mapping[str, float] | None = None,
    curves: Sequence[Point] = (),
    artifacts: Mapping[str, str] | None = None,
) -> Payload:
    """The payload of a run.

    Nested params become dotted keys, secrets `***`. A value too long is cut, and kept whole in
    `cut_values.json`. NaN and infinity are left out (the server would store them as 1.8e308) and
    named in a tag `nonfinite.<metric>`.
    """
    made = Payload()
    for name, text in (artifacts or {}).items():
        made.artifacts[name] = redact(text)
    cut: dict[str, str] = {}
    made.params = _fitted(_flat(redact_tree(params)), PARAM_LENGTH, cut)
    # the first one is what MLflow's page of comparison shows at first
    points = [*curves, *(Point(name, 0, value) for name, value in (metrics or {}).items())]
    keys = safe_keys([point.name for point in points])
    for point in points:
        if math.isfinite(point.value):
            made.points.append(Point(keys[point.name], point.step, float(point.value)))
    made.tags = _fitted({**redact_tree(tags), **_nonfinite(points)}, TAG_LENGTH, cut)
    if cut:
        made.artifacts[CUT_FILE] = json.dumps(cut, indent=1, sort_keys=True)
    return made


def batches(
    made: Payload,
) -> Iterator[tuple[list[tuple[str, str]], list[tuple[str, str]], list[Point]]]:
    """(params, tags, points) of each request, as few as the limits allow.

    There is none for an empty payload.
    """
    yield from itertools.zip_longest(
        _chunks(list(made.params.items()), PARAMS_PER_BATCH),
        _chunks(list(made.tags.items()), TAGS_PER_BATCH),
        _chunks(made.points, METRICS_PER_BATCH),
        fillvalue=[],
    )


def safe_keys(keys: Sequence[str]) -> dict[str, str]:
    """Key -> a key MLflow accepts.

    Two keys that would become one are told apart by a hash of the original.
    """
    safe: dict[str, str] = {}
    taken: set[str] = set()

    def changes(key: str) -> bool:
        return _safe_key(key) != key

    # keys that need no change come first, so that none of them has to give way to one that does
    for key in sorted(dict.fromkeys(keys), key=changes):
        name = _safe_key(key)
        safe[key] = name if name not in taken else _with_hash(name, key)
        taken.add(safe[key])
    return safe


def _safe_key(key: str) -> str:
    text = re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)
    # a key is also a path on the server: no empty part, no '.', no '..', no slash at an end
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    text = "/".join(parts) or "_"
    if len(text) <= KEY_LENGTH:
        return text
    return _with_hash(text, key)


def _with_hash(name: str, key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{name[: KEY_LENGTH - 9]}-{digest[:8]}"


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _fitted(values: Mapping[str, str], limit: int, cut: dict[str, str]) -> dict[str, str]:
    keys = safe_keys(list(values))
    fitted = {}
    for key, value in values.items():
        if len(value) > limit:
            _log.warning(
                "MLflow takes %d characters of '%s', of %d; all are in %s",
                limit,
                key,
                len(value),
                CUT_FILE,
            )
            cut[key] = value
        fitted[keys[key]] = value[:limit]
    return fitted


def _nonfinite(points: Sequence[Point]) -> dict[str, str]:
    """A tag for each metric with values that are not finite; it has the first ten of them."""
    values: dict[str, list[str]] = {}
    for point in points:
        if not math.isfinite(point.value):
            value = f"{point.value} at step {point.step}"
            values.setdefault(f"nonfinite.{point.name}", []).append(value)
    return {name: ", ".join(listed[:10]) for name, listed in values.items()}


def _chunks(items: list[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
