"""What the rows of benchmarks/methods.py come to: tables for docs/methods.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods_cases import DENSE, Case, cases

from orchestrator.files import write_atomic


@dataclass(frozen=True)
class Row:
    """Accuracies are fractions: `before` finetuning on validation, `after` it on test data; ratios
    to the dense model.

    `sparsity` counts the weights that MACs go through, removed ones included.
    """

    case: str
    seed: int
    before: float
    after: float
    macs: float = 1.0
    effective_macs: float = 1.0
    sparsity: float = 0.0
    scoring_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over the seeds; `apart` is the difference to the reference's
    mean, over the pooled spread where there is one.
    """

    seeds: int
    before: tuple[float, float]
    after: tuple[float, float]
    apart: tuple[float, float | None] | None
    rows: Sequence[Row]

    def mean(self, name: str) -> float:
        return statistics.fmean(getattr(row, name) for row in self.rows)


def summaries(rows: Sequence[Row], wanted: Sequence[Case]) -> dict[str, Summary]:
    found: dict[str, Summary] = {}
    for case in wanted:
        mine = [row for row in rows if row.case == case.key]
        others = [row for row in rows if row.case == case.reference]
        if not mine:
            continue
        apart = difference([r.after for r in mine], [r.after for r in others]) if others else None
        found[case.key] = Summary(
            len(mine),
            spread([r.before for r in mine]),
            spread([r.after for r in mine]),
            apart,
            mine,
        )
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def difference(mine: Sequence[float], others: Sequence[float]) -> tuple[float, float | None]:
    """Of the means, and that over the root of the mean variance of both."""
    (a, s), (b, t) = spread(mine), spread(others)
    pooled = ((s * s + t * t) / 2) ** 0.5
    return a - b, (a - b) / pooled if min(len(mine), len(others)) > 1 and pooled > 0.0 else None


def percent(value: tuple[float, float], seeds: int) -> str:
    return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}" if seeds > 1 else f"{100 * value[0]:.1f}"


def beside(apart: tuple[float, float | None] | None) -> str:
    """`+1.2 (+2.4 s)`: points, then spreads; worse than the reference beyond the spread stands
    out.
    """
    if apart is None:
        return ""
    points, spreads = apart
    if spreads is None:
        return f"{100 * points:+.1f}"
    text = f"{100 * points:+.1f} ({spreads:+.1f} s)"
    return f"**{text} worse**" if spreads < -1.0 else text


def cells(found: Summary | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    return [
        percent(found.before, found.seeds),
        percent(found.after, found.seeds),
        beside(found.apart),
    ]


def unit_table(found: dict[str, Summary], wanted: Sequence[Case]) -> list[list[str]]:
    """One row per method with both targets, best at the smaller one first."""
    targets = list(dict.fromkeys(case.target for case in wanted))
    lines = [
        [
            "method",
            *(f"{t}: {w}" for t in targets for w in ("before", "test", "vs random")),
            "scoring, s",
            "s",
        ]
    ]
    names = dict.fromkeys(case.name for case in wanted)
    at = {name: [found.get(f"{name} @ {target}") for target in targets] for name in names}
    for name in sorted(at, key=lambda name: -(last.after[0] if (last := at[name][-1]) else 0.0)):
        seen = [one for one in at[name] if one]
        if seen:
            columns = [cell for one in at[name] for cell in cells(one)]
            lines.append(
                [
                    name,
                    *columns,
                    f"{seen[0].mean('scoring_seconds'):.2f}",
                    f"{seen[0].mean('seconds'):.0f}",
                ]
            )
    return lines


def plain_table(found: dict[str, Summary], wanted: Sequence[Case]) -> list[list[str]]:
    """One row per case, in the order of the cases."""
    heads = [
        "method",
        "target",
        "MACs, %",
        "effective MACs, %",
        "sparsity, %",
        "before",
        "test",
        "vs random",
    ]
    lines = [[*heads, "scoring, s", "s"]]
    for case in wanted:
        one = found.get(case.key)
        if one is not None:
            shares = [
                f"{100 * one.mean(name):.1f}" for name in ("macs", "effective_macs", "sparsity")
            ]
            ends = [f"{one.mean('scoring_seconds'):.2f}", f"{one.mean('seconds'):.0f}"]
            lines.append([case.name, case.target, *shares, *cells(one), *ends])
    return lines


def tables(rows: Sequence[Row]) -> dict[str, list[list[str]]]:
    wanted = [*DENSE, *cases()]
    found = summaries(rows, wanted)
    named = {
        name: [case for case in wanted if case.table == name]
        for name in dict.fromkeys(c.table for c in wanted)
    }
    made = {
        name: (unit_table if name == "units" else plain_table)(found, mine)
        for name, mine in named.items()
    }
    return {name: lines for name, lines in made.items() if len(lines) > 1}


def markdown(lines: list[list[str]]) -> str:
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def show(lines: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    for row in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print()


def report(document: Path, held: dict[str, Any]) -> None:
    """The tables and how they came about, each between its markers in the document; text outside
    stays as it is.
    """
    rows = [Row(**row) for row in held["rows"]]
    made = {name: markdown(lines) for name, lines in tables(rows).items()}
    run, machine = held["run"], held["machine"]
    seeds = len({row.seed for row in rows})
    made["setting"] = (
        f"`{held['command']}`, {held['date']}: {seeds} seed{'s' if seeds > 1 else ''}, "
        f"{run['epochs']} epochs of dense "
        f"training, {run['steps']} steps of finetuning; {machine['processor']}, {machine['cores']} "
        "cores, "
        f"{machine['workers']} worker{'s' if machine['workers'] > 1 else ''} of one thread, torch "
        f"{machine['torch']}."
    )
    text = document.read_text(encoding="utf-8")
    for name, body in made.items():
        pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(
                f"{document} must have the markers <!-- {name}: begin --> and <!-- {name}: end -->"
            )
        text = pattern.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)  # type: ignore[misc]
    write_atomic(document, text)
