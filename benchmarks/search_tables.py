"""What the rows of benchmarks/search.py come to: tables and pictures for docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from orchestrator.files import write_atomic
from orchestrator.search.front import hypervolume, non_dominated

matplotlib.use("Agg")
from matplotlib import pyplot

RATIOS = (0.05, 0.10, 0.15, 0.25, 0.35)
LEAST = 1 / 32
OCTAVES = -math.log2(LEAST)
DASHES = ((4, 2), (1, 1), (4, 1, 1, 1), (6, 1), (2, 2), (1, 3), (8, 2, 1, 2), (6, 3))
TOLERANCE = 0.01
"""Of accuracy: about one standard error of the difference of two models on 2,000 validation images.
"""


@dataclasses.dataclass(frozen=True)
class Point:
    """One model: FLOPs ratio and accuracies."""

    ratio: float
    validation: float
    test: float


@dataclasses.dataclass(frozen=True)
class Result:
    """One rival with one seed; `seconds` is what it took, `phases` where they went.

    `machine` has the processor and torch, `step_ms` is what a step of the dense model took just
    before (None in rows from before it was kept): a CPU second is not worth the same on all
    machines, nor on all days.
    """

    setting: str
    rival: str
    budget: float
    seed: int
    seconds: float
    points: Sequence[Point]
    phases: Mapping[str, float]
    machine: str
    day: str
    step_ms: float | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        return cls(**{**data, "points": [Point(**point) for point in data["points"]]})

    def front(self) -> list[Point]:
        """The models that no other dominates on validation data by more than that data can tell."""
        if not self.points:
            return []
        kept = non_dominated(np.array([[p.validation, p.ratio] for p in self.points]), TOLERANCE)
        return [point for point, keep in zip(self.points, kept, strict=True) if keep]

    def volume(self, reference: float) -> float:
        """Test accuracy above `reference`, times octaves of FLOPs, under the front down to 1/32."""
        front = self.front()
        return OCTAVES * hypervolume(
            [p.test for p in front], [p.ratio for p in front], reference, LEAST
        )

    def at(self, ratio: float) -> float | None:
        """Test accuracy of the front's best model within `ratio` of the FLOPs, by validation; None
        where none is.
        """
        fits = [point for point in self.front() if point.ratio <= 1.0001 * ratio]
        return max(fits, key=lambda point: point.validation).test if fits else None

    def line(self) -> str:
        found = " ".join(
            "  -  " if (value := self.at(ratio)) is None else f"{value:.3f}" for ratio in RATIOS
        )
        return (
            f"{self.setting:10s} {self.budget:4.0f} s seed {self.seed} {self.rival:22s} {found}  "
            f"volume over .8 {self.volume(0.8):.3f}, over .5 {self.volume(0.5):.3f}, "
            f"{self.seconds:.0f} s, {len(self.points)} models"
        )


def spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def table(results: Sequence[Result], rivals: Sequence[str]) -> list[list[str]]:
    """One row per rival: means and standard deviations over its seeds."""
    heads = [f"{100 * ratio:.0f} %" for ratio in RATIOS]
    lines = [["", "seeds", *heads, "volume over .8", "volume over .5", "models", "CPU s", "ms"]]
    for rival in rivals:
        mine = [result for result in results if result.rival == rival]
        if not mine:
            continue
        cells = []
        for ratio in RATIOS:
            values = [value for result in mine if (value := result.at(ratio)) is not None]
            cells.append(spread(values) if len(values) == len(mine) else "-")
        volumes = [
            spread([result.volume(reference) for result in mine]) for reference in (0.8, 0.5)
        ]
        models = f"{statistics.fmean(len(result.points) for result in mine):.0f}"
        seconds = f"{statistics.fmean(result.seconds for result in mine):.0f}"
        steps = [result.step_ms for result in mine if result.step_ms is not None]
        speed = f"{statistics.fmean(steps):.0f} ({len(steps)})" if steps else "-"
        lines.append([rival, str(len(mine)), *cells, *volumes, models, seconds, speed])
    return lines


def verdict(results: Sequence[Result], rivals: Sequence[str], most: int = 3) -> str:
    """Ours beside the strongest rivals, by volume over .8."""
    volumes = {
        rival: [result.volume(0.8) for result in results if result.rival == rival]
        for rival in rivals
        if any(result.rival == rival for result in results)
    }
    others = [rival for rival in volumes if not rival.startswith("ours")]
    if "ours" not in volumes or not others:
        return ""
    strongest = sorted(others, key=lambda rival: -statistics.fmean(volumes[rival]))[:most]
    found = [f"{rival} {apart(volumes['ours'], volumes[rival])}" for rival in strongest]
    return f"Ours in volume over .8 against the strongest rivals: {'; '.join(found)}."


def apart(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The difference of the means, and it over the pooled spread."""
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    text = f"{difference:+.3f}"
    if min(len(ours), len(theirs)) > 1:
        pooled = math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / 2)
        text += f" ({difference / pooled:+.1f} pooled standard deviations)" if pooled > 0.0 else ""
    return text


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rest))


def styles(rivals: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each is drawn: a colour per rival, ours black and thick, variants of ours grey and
    dashed.
    """
    variants = [rival for rival in rivals if rival.startswith("ours,")]
    others = [rival for rival in rivals if not rival.startswith("ours")]
    found: dict[str, dict[str, Any]] = {
        name: {"color": f"C{n}", "lw": 1.2} for n, name in enumerate(others)
    }
    for place, name in enumerate(variants):
        found[name] = {"color": "0.4", "lw": 1.2, "dashes": DASHES[place % len(DASHES)]}
    return {**found, "ours": {"color": "black", "lw": 2.2}}


def picture(path: Path, results: Sequence[Result], rivals: Sequence[str], title: str) -> None:
    """Test accuracy over FLOPs: the mean of the seeds' fronts as steps, their range as a band."""
    figure, axes = pyplot.subplots(figsize=(8.8, 4.4))
    grid = np.geomspace(LEAST, 0.5, 200)
    looks = styles(rivals)
    for rival in rivals:
        mine = [result for result in results if result.rival == rival]
        if not mine:
            continue
        values = np.array([[result.at(ratio) or np.nan for ratio in grid] for result in mine])
        there = ~np.isnan(values).any(0)
        axes.plot(grid[there], values[:, there].mean(0), label=rival, **looks[rival])
        band = values[:, there].min(0), values[:, there].max(0)
        axes.fill_between(grid[there], *band, color=looks[rival]["color"], alpha=0.15, lw=0)
    axes.set_xscale("log")
    axes.set_xticks(
        [1 / 32, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5],
        ["3 %", "5 %", "10 %", "15 %", "25 %", "35 %", "50 %"],
    )
    axes.minorticks_off()
    best = max(point.test for result in results for point in result.points)
    low = min(point.test for result in results if result.rival == "ours" for point in result.points)
    axes.set_ylim(max(0.0, low - 1.5 * (best - low) - 0.01), best + 0.1 * (best - low) + 0.002)
    axes.set_xlabel("FLOPs of the dense model")
    axes.set_ylabel("test accuracy")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write(
    document: Path, results: Sequence[Result], titles: Mapping[str, str], rivals: Sequence[str]
) -> None:
    """Everything between the document's markers, and the pictures beside it; the machine that came
    last is first.
    """
    machines = list(dict.fromkeys(result.machine for result in results))
    parts = []
    for number, machine in reversed(list(enumerate(machines, 1))):
        rows = [result for result in results if result.machine == machine]
        parts += [f"## {machine}", made(rows)]
        for name, title in titles.items():
            for budget in sorted({result.budget for result in rows}):
                mine = [
                    result for result in rows if result.setting == name and result.budget == budget
                ]
                if mine:
                    picture_path = (
                        document.parent / "benchmarks" / f"{name}-{budget:g}-{number}.png"
                    )
                    parts += section(mine, rivals, f"{title}, {budget:g} s", picture_path)
    body = "\n\n".join(part for part in parts if part)
    text = document.read_text()
    marked = re.compile(r"(<!-- results: begin -->\n).*(<!-- results: end -->)", re.S)
    write_atomic(document, marked.sub(lambda found: f"{found[1]}\n{body}\n\n{found[2]}", text))


def section(results: Sequence[Result], rivals: Sequence[str], title: str, path: Path) -> list[str]:
    """Heading, table, verdict and, where there is something to compare, the picture of a setting
    and budget.
    """
    found = [f"### {title}", markdown(table(results, rivals)), verdict(results, rivals)]
    if (
        any(result.rival == "ours" for result in results)
        and len({result.rival for result in results}) > 1
    ):
        path.parent.mkdir(exist_ok=True)
        picture(path, results, rivals, title)
        found.append(f"![{title}]({path.parent.name}/{path.name})")
    return found


def made(results: Sequence[Result]) -> str:
    """How the rows came about, in a sentence or two."""
    budgets = " ".join(f"{budget:g}" for budget in sorted({result.budget for result in results}))
    seeds = max(result.seed for result in results)
    days = sorted({result.day for result in results})
    return (
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}. Command: `python benchmarks/search.py "
        f"--budgets {budgets} "
        f"--seeds {seeds} --workers 2` (what a table lacks was not run). Means and standard "
        "deviations over the seeds; "
        "volume: accuracy above the reference times octaves of FLOPs; ms: of a step of the dense "
        "model just before "
        "(seeds for which it was kept), the worth of a CPU second."
    )
