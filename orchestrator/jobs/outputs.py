"""The outputs of a search in `runs/<study.name>/`, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.recipe import digest
from orchestrator.files import write_atomic
from orchestrator.jobs.view import DECISIONS, ERRORS, GROUPS, known_from, read_known, view_of
from orchestrator.redact import redact_tree
from orchestrator.report.page import write_page
from orchestrator.report.picture import pareto
from orchestrator.report.tables import BEATEN, beaten, show, show_front, summary_table
from orchestrator.report.view import StudyView
from orchestrator.results.quantities import axis_words, duration, free_in_words, percent
from orchestrator.results.rows import (
    FRONT_ORIGIN,
    ConfirmedRow,
    Rows,
    RungRow,
    TrialRow,
    read_csv,
    write_csv,
)
from orchestrator.results.undertrained import undertraining
from orchestrator.search.plans.names import PLAN
from orchestrator.search.studies.rungs import in_words
from orchestrator.settings import ObjectiveSettings, Settings
from orchestrator.settings.budget import parse_budget
from orchestrator.stored import read_cache, tell_damaged

CONFIG = "config.yaml"
TRIALS = "trials.csv"
RUNGS_FILE = "rungs.csv"
FRONT = "front.csv"
BASELINES = "baselines.csv"
PICTURE = "pareto.png"
PAGE = "report.html"
SUMMARY = "summary.json"
JOURNAL = "study.journal"
"""All trials as Optuna stores them; a study in a database has none."""


@dataclass(frozen=True)
class Outputs:
    """Rows as in the files.

    `dense` is the dense model finetuned as long as the front's, `summary` is summary.json.
    """

    folder: Path
    objectives: ObjectiveSettings
    trials: Sequence[TrialRow]
    front: Sequence[ConfirmedRow]
    baselines: Sequence[ConfirmedRow]
    dense: ConfirmedRow
    summary: Mapping[str, Any]

    @property
    def rows(self) -> Rows:
        return Rows(self.trials, self.front, self.baselines, self.dense)

    @property
    def sign(self) -> float:
        """1 where a large quality is good, else -1."""
        known = read_known(self.folder)
        return 1.0 if known is None else known.sign

    def rungs(self) -> list[RungRow]:
        """How far each rung foretold the end."""
        return [RungRow(**row) for row in self.summary.get("rungs", ())]

    def files(self) -> list[Path]:
        """The tables, the pictures and the summary."""
        tables = (CONFIG, TRIALS, RUNGS_FILE, FRONT, BASELINES, GROUPS, DECISIONS, ERRORS)
        names = (*tables, PAGE, PICTURE, SUMMARY)
        paths = [self.folder / name for name in names]
        # a study that an earlier version finished has no page
        return [path for path in paths if path.is_file()]

    def write(self, settings: Settings) -> None:
        """Write all files; the summary comes last: where it exists, the others are whole."""
        known = read_known(self.folder) or known_from(settings)
        plain = yaml.safe_dump(redact_tree(settings.plain()), sort_keys=False)
        write_atomic(self.folder / CONFIG, plain)
        write_csv(self.folder / TRIALS, self.trials, TrialRow)
        write_csv(self.folder / RUNGS_FILE, self.rungs(), RungRow)
        write_csv(self.folder / FRONT, self.front, ConfirmedRow)
        write_csv(self.folder / BASELINES, [self.dense, *self.baselines], ConfirmedRow)
        pareto(
            self.folder / PICTURE,
            self.rows,
            quality=self.objectives.quality,
            title=settings.study.name,
            sign=known.sign,
        )
        view = view_of(self.folder, known, self.rows, self.rungs(), self.summary)
        write_page(self.folder / PAGE, view)
        write_atomic(self.folder / SUMMARY, json.dumps(self.summary, indent=1))

    def show(self, headline: str, *, quiet: bool = False) -> None:
        """The front beside its baselines, then where things are and where the time went.

        `quiet`: the front alone.
        """
        objectives = self.objectives
        further = (*objectives.costs[1:], *objectives.metrics)
        show_front(self.rows, objectives.quality, further, self.sign)
        if quiet:
            return
        lines = [*self._result_lines(), *self._time_lines(), *self._place_lines()]
        show(summary_table(f"{self.folder.name}: {headline}", lines))

    def _result_lines(self) -> list[tuple[str, str]]:
        """The results of the study, and what it left out."""
        summary = self.summary
        states = ", ".join([f"{count} {state}" for state, count in summary["states"].items()])
        volume = f"{summary['hypervolume']:.4f} of the confirmed front (test data)"
        lines = [("trials", states), ("rungs", in_words(self.rungs())), ("hypervolume", volume)]
        if "smallest" in summary:
            lines.append(("smallest", self._smallest(summary["smallest"])))
        if "dense_as_given" in summary:
            lines.append(("dense as given", self._given(summary["dense_as_given"])))
        behind = undertraining(self.rows, self.objectives.quality, self.sign, summary)
        if behind:
            lines.append(("dense", behind))
        if any([beaten(row, self.front, self.sign) for row in self.front]):
            lines.append((BEATEN, "a smaller model of the front is better on test data"))
        ladders = [row.words for row in self.front if row.origin != FRONT_ORIGIN]
        if ladders:
            lines.append(
                ("baselines", f"ahead of the search on validation data: {', '.join(ladders)}")
            )
        if "free" in summary:
            lines.append(("free to go", free_in_words(summary["free"])))
        if summary.get("baselines_left_out"):
            lines.append(("left out", _left_out(summary)))
        for name, reason in summary.get("failed", {}).items():
            lines.append(("failed", f"{name}: {reason}"))
        return lines

    def _given(self, value: float) -> str:
        finetuned = f"{self.dense.test_mean:.4f}"
        return f"{value:.4f} on test data; finetuned as long as the front, as above: {finetuned}"

    def _smallest(self, smallest: Mapping[str, Any]) -> str:
        near = f"within {smallest['tolerance']:.3g} of the dense model's {self.objectives.quality}"
        if smallest["trial"] is None:
            return f"no model is {near}"
        share = f"{percent(smallest['ratio'])} of the {axis_words(self.dense.axis)}"
        return f"model {smallest['trial']}: {share}, {near}"

    def _time_lines(self) -> list[tuple[str, str]]:
        summary = self.summary
        lines = [("time", duration(summary["seconds"]))]
        for name, seconds in summary["phases"].items():
            lines.append((f"  {name}", duration(seconds)))
        orchestration = percent(summary["orchestration_share"])
        lines.append(
            ("orchestration", f"{orchestration} of the time: all but training and evaluation")
        )
        lines.append(("tracking", f"{percent(summary['tracking_share'])} of the time"))
        return lines

    def _place_lines(self) -> list[tuple[str, str]]:
        tables = ", ".join([str(self.folder / name) for name in (FRONT, BASELINES, TRIALS)])
        models = f"{self.folder / 'models'}/<model>"
        pictures = [self.folder / name for name in (PICTURE, PAGE)]
        journal = self.folder / JOURNAL
        dashboard = [("dashboard", f"optuna-dashboard {journal}")] if journal.is_file() else []
        return [
            ("tables", tables),
            ("pictures", ", ".join([str(path) for path in pictures if path.is_file()])),
            ("models", f"{models}; orchestrator.load_pruned(path) gives the nn.Module"),
            *dashboard,
        ]


def _left_out(summary: Mapping[str, Any]) -> str:
    names = ", ".join(summary["baselines_left_out"])
    return f"baselines {names}: they would not have ended within study.budget={summary['budget']}"


def stored_view(folder: Path) -> StudyView:
    """A finished study as its page shows it, from its files.

    Errors: ConfigError for a folder without one, DataError for files that cannot be read.
    """
    known = read_known(folder)
    summary = read_cache(folder / SUMMARY, dict)
    if known is None or summary is None:
        raise ConfigError(
            f"a finished study has {GROUPS} and {SUMMARY} in its folder; {folder} has not: give "
            "the name or folder of one that has ended"
        )
    dense, *baselines = read_csv(folder / BASELINES, ConfirmedRow)
    front = read_csv(folder / FRONT, ConfirmedRow)
    rows = Rows(read_csv(folder / TRIALS, TrialRow), front, baselines, dense)
    return view_of(folder, known, rows, read_csv(folder / RUNGS_FILE, RungRow), summary)


def finished_before(settings: Settings) -> Outputs | None:
    """The outputs of a study that is complete.

    It has all the trials or the time asked for, or all there can be, and is confirmed alike. None
    when there is work: also where a model was deleted, a file is damaged, or a confirmation failed.
    """
    folder = settings.study.folder
    summary = read_cache(folder / SUMMARY, _parsed)
    if summary is None:
        return None
    enough = _has_enough(summary, settings) or summary.get("exhausted", False)
    if summary["key"] != key(settings) or not enough or summary.get("failed"):
        return None
    try:
        dense, *baselines = read_csv(folder / BASELINES, ConfirmedRow)
        trials = read_csv(folder / TRIALS, TrialRow)
        front = read_csv(folder / FRONT, ConfirmedRow)
    except (DataError, OSError, ValueError) as error:
        tell_damaged(folder, error)
        return None
    for row in front:
        if not (folder / "models" / row.name / PLAN).exists():
            return None
    return Outputs(folder, settings.objectives, trials, front, baselines, dense, summary)


def _parsed(data: Any) -> dict[str, Any]:
    return {**data, "trials": int(data["trials"]), "key": str(data["key"])}


def _has_enough(summary: Mapping[str, Any], settings: Settings) -> bool:
    """Whether the study has all the trials or the time asked for."""
    budget = settings.study.budget
    if budget is None:
        return bool(summary["trials"] >= settings.study.n_trials)
    recorded = summary.get("budget")
    return recorded is not None and parse_budget(recorded).covers(budget)


def key(settings: Settings) -> str:
    """Names the search together with its confirmation."""
    return digest([settings.identity(), settings.phases.confirm.model_dump(mode="json")])
