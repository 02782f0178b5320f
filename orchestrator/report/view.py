"""What the report page is made of, as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.results.decisions import Decisions
from orchestrator.results.error_curves import ErrorCurves
from orchestrator.results.requested import Requested
from orchestrator.results.rows import Rows, RungRow
from orchestrator.results.who_pays import SeedResults


@dataclass(frozen=True)
class GroupFacts:
    """One group of the network; `macs_share` is the share of the dense MACs that go with it.

    A layer between two groups counts for both. `block` is the group of the residual block that it
    goes with, empty where it is in none.
    """

    name: str
    kind: str
    units: int
    macs_share: float
    block: str = ""


@dataclass(frozen=True)
class Network:
    """What is known of the dense network: its groups in network order, and what stays whole.

    `skipped` has the reason by the name of a layer or group, and `before` how many of the groups
    stand before it in the network, where that is known.
    """

    groups: Sequence[GroupFacts] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyView:
    """A study as its page shows it.

    `sign` is 1 where a large quality is good, else -1; `signs` are those of all the task's metrics.
    `kept` has, by the name of a model of the front, the share that is kept: of a group's units, or
    of a tensor's weights; `requested` has what their plans asked for, where they say it. `summary`
    is summary.json; while the study runs it has what was known at its beginning. `tested` has the
    test results of the front's models and of the dense one by name. `errors` are the curves of the
    dense network's groups, where the method knows them.
    """

    name: str
    quality: str
    sign: float
    rows: Rows
    network: Network = Network()
    kept: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    requested: Mapping[str, Requested] = field(default_factory=dict)
    rungs: Sequence[RungRow] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    decisions: Decisions = field(default_factory=Decisions)
    tested: Mapping[str, SeedResults] = field(default_factory=dict)
    signs: Mapping[str, float] = field(default_factory=dict)
    errors: ErrorCurves = field(default_factory=dict)
