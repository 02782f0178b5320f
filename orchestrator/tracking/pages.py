"""What MLflow's pages show beside values: which columns, whose run, on which data, and links."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from orchestrator.tracking import ON_FRONT

NOTE = "mlflow.note.content"
"""The description of a run or an experiment, in Markdown."""
TABLES = "mlflow.loggedArtifacts"
"""Which artifacts of a run are tables."""
TABLE = "front.json"
_KIND = "mlflow.experimentKind"
_VIEW = "mlflow.sharedViewState."
"""An experiment's tags of this prefix are views of its table of runs, by the key in a link."""
_OF_STUDIES = ("tags.`method`", "metrics.`hypervolume`", "metrics.`front_size`")
"""What a study has beside what its models have."""
_SIDE = "workflowType=machine_learning"
"""Opens MLflow's side bar of model training; its default is that of language models."""
_MADE_HERE = "Studies of pruning: one run each, and below it one for each trial and other model."
_LINK = re.compile(r"\[(?P<words>[^\]]*)\]\((?P<kind>run|file):(?P<name>[^)]+)\)")


def columns(quality: str) -> list[str]:
    """The columns of the table of runs, in the order in which a person reads them.

    MLflow itself shows no metric before columns are chosen, and then in alphabetical order.
    """
    metrics = (
        "quality",
        f"test_{quality}",
        f"test_{quality}_std",
        "flops_ratio",
        "params_ratio",
        "latency_ms",
        "size_mb",
    )
    shown = [f"metrics.`{name}`" for name in metrics]
    return ["tags.`state`", *shown, "tags.`origin`", f"tags.`{ON_FRONT}`"]


@dataclass(frozen=True)
class Place:
    """A study's run on the pages of its experiment."""

    experiment: str
    run: str

    @property
    def link(self) -> str:
        return self.link_to(self.run)

    @property
    def table_link(self) -> str:
        """The table of all runs below the study's."""
        return self.view_link(self.run)

    def link_to(self, run: str) -> str:
        return f"{self._page}/{run}?{_SIDE}"

    def artifact_link(self, name: str) -> str:
        return f"{self._page}/{self.run}/artifacts/{name}?{_SIDE}"

    def view_link(self, view: str) -> str:
        return f"{self._page}?{_SIDE}&viewStateShareKey={view}"

    def compare_link(self, runs: Sequence[str]) -> str:
        """The page that lays runs side by side."""
        listed = quote(json.dumps(list(runs), separators=(",", ":")))
        experiments = quote(json.dumps([self.experiment]))
        return f"#/compare-runs?runs={listed}&experiments={experiments}&{_SIDE}"

    @property
    def _page(self) -> str:
        return f"#/experiments/{self.experiment}/runs"


def dress(client: Any, place: Place, quality: str) -> None:
    """Give the experiment its kind, its views and its description, where they are missing.

    A description of somebody else stays.
    """
    tags = dict(client.get_experiment(place.experiment).tags)
    shown = columns(quality)
    chosen = {"selectedColumns": shown, "columnOrder": shown}
    studies = [*_OF_STUDIES, *shown]
    below = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{place.run}'",
        "orderByKey": "metrics.`flops_ratio`",
        "orderByAsc": False,
    }
    wanted = {
        _KIND: "custom_model_development",
        f"{_VIEW}{quality}": json.dumps({"selectedColumns": studies, "columnOrder": studies}),
        f"{_VIEW}{place.run}": json.dumps({**chosen, **below}),
    }
    if tags.get(NOTE, _MADE_HERE).startswith(_MADE_HERE):
        wanted[NOTE] = (
            f"{_MADE_HERE} [The table with its columns]({place.view_link(quality)}), for studies "
            f"of the {quality}."
        )
    for name, value in wanted.items():
        if tags.get(name) != value:
            client.set_experiment_tag(place.experiment, name, value)


def made_by() -> dict[str, str]:
    """Tags of a run: the program and its user."""
    tags = {"mlflow.source.name": "python -m orchestrator", "mlflow.source.type": "LOCAL"}
    # a container's user may have no name
    with suppress(OSError, KeyError, ImportError):
        tags["mlflow.user"] = getpass.getuser()
    return tags


def log_data(client: Any, run: str, tags: Mapping[str, str]) -> None:
    """Name the data of a study as an input of its run; nothing is read."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if "data_digest" not in tags:
        return
    source = json.dumps({"recipe": tags["data"]})
    data = Dataset(tags["data"], tags["data_digest"], "recipe", source)
    use = InputTag("mlflow.data.context", "search")
    client.log_inputs(run, datasets=[DatasetInput(data, [use])])


def linked(text: str, place: Place, runs: Mapping[str, str]) -> str:
    """A description whose links lead somewhere; `runs` are ids by key.

    A link to a run that is not there becomes its words.
    """

    def link(match: re.Match[str]) -> str:
        words = match["words"]
        if match["kind"] == "file":
            return f"[{words}]({place.artifact_link(match['name'])})"
        run = runs.get(match["name"])
        return words if run is None else f"[{words}]({place.link_to(run)})"

    return _LINK.sub(link, text)
