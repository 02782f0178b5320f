"""Studies of one experiment side by side, as a run of MLflow."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.tracking.pages import NOTE, TABLES, Place, made_by
from orchestrator.tracking.server import answering, connect, exchange, require_database

NAME = "comparison"
"""The name of the run, and its tag `kind`."""
COMPARED = "comparison.json"
"""The artifact that MLflow shows as a table."""
_KEY = "comparison_key"
_LONGEST = 5000
"""Characters of a tag."""


@dataclass(frozen=True)
class SideBySide:
    """Names of studies, the page that shows them, and the same as a table of text."""

    studies: Sequence[str]
    page: Path
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def record_comparison(uri: str, experiment: str, comparison: SideBySide) -> str:
    """Records a comparison in the experiment, in the place of an earlier one of these studies.

    Returns the id of its run. Errors: TrackerError.
    """
    require_database(uri)
    with answering(uri):
        client, experiment_id = connect(uri, experiment)
    with exchange(uri):
        run_id = _run_of(client, experiment_id, comparison)
        place = Place(experiment_id, run_id)
        client.log_artifact(run_id, str(comparison.page))
        table = {"columns": list(comparison.header), "data": [list(row) for row in comparison.rows]}
        client.log_text(run_id, json.dumps(table), COMPARED)
        for name, value in _tags(client, place, comparison).items():
            client.set_tag(run_id, name, value)
        client.set_terminated(run_id, "FINISHED", end_time=int(1000 * time.time()))
    return run_id


def _run_of(client: Any, experiment: str, comparison: SideBySide) -> str:
    """The run of these studies' comparison; a new one where there is none."""
    names = "\n".join(sorted(comparison.studies))
    key = hashlib.sha256(names.encode()).hexdigest()[:24]
    runs = client.search_runs([experiment], f"tags.{_KEY} = '{key}'", max_results=1)
    if not runs:
        runs = [client.create_run(experiment, tags={_KEY: key}, run_name=NAME)]
    run_id: str = runs[0].info.run_id
    return run_id


def _tags(client: Any, place: Place, comparison: SideBySide) -> dict[str, str]:
    links = [f"[the page]({place.artifact_link(comparison.page.name)})"]
    links += [_link(client, place, name) for name in comparison.studies]
    table = [comparison.header, ["---"] * len(comparison.header), *comparison.rows]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return {
        **made_by(),
        "kind": NAME,
        "state": "finished",
        "studies": ", ".join(comparison.studies)[:_LONGEST],
        NOTE: "\n".join([" · ".join(links), "", *lines])[:_LONGEST],
        TABLES: json.dumps([{"path": COMPARED, "type": "table"}]),
    }


def _link(client: Any, place: Place, study: str) -> str:
    """The name of a study, as a link to its newest run where there is one."""
    quoted = study.replace("'", "\\'")
    query = f"tags.study = '{quoted}' AND tags.kind = 'study'"
    runs = client.search_runs([place.experiment], query, max_results=1)
    return f"[{study}]({place.link_to(runs[0].info.run_id)})" if runs else study
