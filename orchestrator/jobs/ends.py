"""The end of a study for tracking.

A study that is complete needs nothing else of tracking.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.jobs.outputs import PAGE, PICTURE, Outputs
from orchestrator.jobs.shown import five_digits, shown_costs, size_words, study_columns
from orchestrator.jobs.view import read_known
from orchestrator.results.quantities import axis_words, cost_words, mean_and_spread, percent
from orchestrator.results.rows import FRONT_ORIGIN, ConfirmedRow
from orchestrator.search.plans.names import PLAN
from orchestrator.settings import Settings
from orchestrator.stored import read_cache
from orchestrator.tracking import (
    CONFIRMED,
    ON_FRONT,
    Finalist,
    ModelRecord,
    StudyResults,
    Tracker,
)
from orchestrator.tracking.spooled import Spooled, spooled


def tracker_of(settings: Settings) -> Tracker:
    """The tracker of the configuration.

    Its records are kept in the study's folder until they are sent.
    """
    return spooled(
        settings.tracking.build(), settings.study.folder / "spool", settings.tracking.to_json()
    )


def record_end(settings: Settings, tracker: Tracker, outputs: Outputs) -> None:
    """Record what a finished study could not send.

    That includes its end, where the run was killed before it was recorded.
    """
    if isinstance(tracker, Spooled):
        tracker.require_end(end_of(settings, outputs))


def end_of(settings: Settings, outputs: Outputs) -> StudyResults:
    """What a finished study says of itself."""
    summary = outputs.summary
    metrics = {
        "hypervolume": five_digits(summary["hypervolume"]),
        "front_size": float(len(outputs.front)),
        "seconds": five_digits(summary["seconds"]),
    }
    return StudyResults(
        metrics=metrics,
        artifacts=outputs.files(),
        models=[*_confirmed(settings, outputs), *_left(outputs)],
        description=_description(settings, outputs),
        table=_table(outputs),
        finalists=_finalists(outputs) if settings.tracking.arguments.get("register") else (),
    )


def _confirmed(settings: Settings, outputs: Outputs) -> Iterator[ModelRecord]:
    """The dense model, the front's models, and the baselines'."""
    quality = outputs.objectives.quality
    members = {row.name for row in outputs.front}
    # models of baselines on the front stand among the baselines, too
    for row in (outputs.dense, *_own(outputs), *outputs.baselines):
        on_front = "true" if row.name in members else "false"
        tags = {CONFIRMED: "true", ON_FRONT: on_front}
        test = {f"test_{name}": value for name, value in row.metrics.items()}
        test |= {f"test_{quality}": row.test_mean, f"test_{quality}_std": row.test_std}
        test |= shown_costs(row.costs, row.ratios)
        params = {}
        if row.origin != FRONT_ORIGIN:
            tags |= {**study_columns(settings), "kind": "baseline", "origin": row.origin}
            tags["state"] = "completed"
        if row in outputs.baselines:
            params["at_the_cost_of"] = f"trial {row.trial}"
        rounded_test = {name: five_digits(value) for name, value in test.items()}
        yield ModelRecord(row.name, _title(row), tags, params, rounded_test)


def _own(outputs: Outputs) -> list[ConfirmedRow]:
    """The front's models that the search found."""
    return [row for row in outputs.front if row.origin == FRONT_ORIGIN]


def _title(row: ConfirmedRow) -> str:
    """As of a trial: 'uniform 26% of FLOPs'."""
    if row.trial is None:
        return row.origin
    return f"{row.origin} {size_words(row.cost_ratio, row.axis)}"


def _left(outputs: Outputs) -> Iterator[ModelRecord]:
    """Trials that were confirmed and left the front: another model is better at their cost."""
    front = {row.trial for row in _own(outputs)}
    for trial in outputs.trials:
        path = outputs.folder / "confirm" / f"trial-{trial.number}.json"
        if trial.number in front or not path.is_file():
            continue
        test = read_cache(path, _tested)
        tags = {CONFIRMED: "true", ON_FRONT: "false"}
        yield ModelRecord(str(trial.number), "", tags, {}, test or {})


def _tested(record: Mapping[str, Any]) -> dict[str, float]:
    """Mean and spread of each metric on test data over the seeds."""
    metrics = {}
    for name in record["test"][0]:
        values = [float(seed[name]) for seed in record["test"]]
        metrics[f"test_{name}"] = five_digits(statistics.mean(values))
        metrics[f"test_{name}_std"] = five_digits(statistics.stdev(values))
    return metrics


def _table(outputs: Outputs) -> dict[str, list[object]]:
    """The front by its columns, large to small; the dense model comes first."""
    quality = outputs.objectives.quality
    rows = [outputs.dense, *sorted(outputs.front, key=lambda row: -row.cost)]
    table: dict[str, list[object]] = {
        "model": [row.words for row in rows],
        f"test_{quality}": [five_digits(row.test_mean) for row in rows],
        f"test_{quality}_std": [five_digits(row.test_std) for row in rows],
    }
    for name in shown_costs(outputs.dense.costs, outputs.dense.ratios):
        shown = [shown_costs(row.costs, row.ratios).get(name) for row in rows]
        table[name] = [None if value is None else five_digits(value) for value in shown]
    table["folder"] = [row.path for row in rows]
    return table


def _finalists(outputs: Outputs) -> list[Finalist]:
    """The models of the front that people will use, by what they are the best at."""
    rows = outputs.front
    known = read_known(outputs.folder)
    sign = 1.0 if known is None else known.sign

    def quality(row: ConfirmedRow) -> float:
        return sign * row.test_mean

    chosen = {"best": max(rows, key=quality, default=None)}
    smallest = outputs.summary.get("smallest", {}).get("trial")
    chosen["smallest"] = next((row for row in rows if row.name == str(smallest)), None)
    small = [row for row in rows if row.cost_ratio <= 0.5]
    chosen["under-50"] = max(small, key=quality, default=None)
    aliases: dict[str, list[str]] = {}
    for alias, row in chosen.items():
        if row is not None:
            aliases.setdefault(row.name, []).append(alias)
    named = {row.name: row for row in rows}
    return [_finalist(outputs, named[name], names) for name, names in aliases.items()]


def _finalist(outputs: Outputs, row: ConfirmedRow, aliases: list[str]) -> Finalist:
    test = mean_and_spread(row.test_mean, row.test_std)
    share = f"{percent(row.cost_ratio)} of the {axis_words(row.axis)}"
    text = (
        f"{row.words.capitalize()} of {outputs.folder.name}: {share}, "
        f"{outputs.objectives.quality} {test}"
    )
    exported = outputs.folder / "best"
    same = read_cache(exported / PLAN, _model_of) == row.name
    folder = exported if same else outputs.folder / "models" / row.name
    return Finalist(row.name, str(folder), aliases, f"{text} on test data.")


def _model_of(document: Mapping[str, Any]) -> str:
    """The name of the model that a plan is of: its trial, or the baseline's that made it."""
    if "origin" in document:
        return f"{document['origin']}-{document['matches']}"
    return str(document["trial"])


def _description(settings: Settings, outputs: Outputs) -> str:
    """The study in words: what it is, its front, and how it is made again."""
    same = study_columns(settings)
    ratios = [row.cost_ratio for row in outputs.front]
    span = f"{percent(min(ratios))} to {percent(max(ratios))}" if ratios else "none"
    lines = [
        f"[the report](file:{PAGE}) · [the picture](file:{PICTURE})",
        "",
        f"Models of {span} of the {axis_words(outputs.dense.axis)}: `{same['model']}` on "
        f"`{same['data']}`, pruned by `{same['method']}`.",
        "",
        *_front_lines(outputs),
    ]
    if settings.command is not None:
        lines += ["", f"To go on with it, or to see it again: `{settings.command}`"]
    return "\n".join(lines)


def _front_lines(outputs: Outputs) -> Iterator[str]:
    """The front as a table of Markdown; a model's name leads to its run."""
    axis = outputs.dense.axis
    unit = "latency_ms" if "latency_ms" in outputs.dense.costs else "size_mb"
    words = [axis_words(axis), axis_words(unit), f"{outputs.objectives.quality} on test data"]
    yield f"| model | {' | '.join(words)} |"
    yield "|---|--:|--:|--:|"
    for row in (outputs.dense, *sorted(outputs.front, key=lambda row: -row.cost)):
        cells = [
            f"[{row.words}](run:{row.name})",
            percent(row.cost_ratio),
            cost_words(unit, row.costs[unit]) if unit in row.costs else "",
            mean_and_spread(row.test_mean, row.test_std),
        ]
        yield f"| {' | '.join(cells)} |"
