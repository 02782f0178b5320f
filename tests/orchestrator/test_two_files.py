"""A cost, a format of export and a section of the page: each is added by a change of two files.

The changes are made in a copy of the project, in which a small study is then searched and exported
as a user would: all else follows from the two files.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Change:
    """Lines that are put into a file, each before what is there; or the content of a new file."""

    file: str
    lines: Mapping[str, str] = field(default_factory=dict)
    new: str = ""

    def make(self, project: Path) -> None:
        path = project / "orchestrator" / self.file
        assert path.exists() == (self.new == "")
        content = self.new or path.read_text(encoding="utf-8")
        for place, added in self.lines.items():
            assert content.count(place) == 1, f"{self.file}: {place}"
            content = content.replace(place, added + place)
        path.write_text(content, encoding="utf-8")


COST = [
    Change("costs.py", {")\nCOSTS: dict": '    CostName("units", "units"),\n'}),
    Change(
        "search/costs.py",
        {
            "FORMULAS: dict": (
                "def _units(prices: Prices, costed: Costed) -> float:\n"
                "    return float(costed.kept.sum())\n\n\n"
            ),
            "}\nSHAPE_COSTS": '    "units": _units,\n',
        },
    ),
]
FORMAT = [
    Change(
        "export/traced.py",
        new=(
            '"""TorchScript, traced."""\n\n'
            "import torch\n\n"
            "from orchestrator.export.flat import Flat, tensors_of\n\n\n"
            "class Traced(torch.nn.Module):\n"
            "    def __init__(self, path):\n"
            "        super().__init__()\n"
            "        self.script = torch.jit.load(path)\n\n"
            "    def forward(self, *args, **kwargs):\n"
            "        outputs = self.script(*tensors_of((args, kwargs)))\n"
            "        return outputs[0] if len(outputs) == 1 else outputs\n\n\n"
            "def write_traced(model, batches, path):\n"
            "    example = next(iter(batches))\n"
            "    flat = Flat(model.eval(), example).eval()\n"
            "    torch.jit.trace(flat, tuple(example.tensors())).save(path)\n"
            "    return Traced(path)\n"
        ),
    ),
    Change(
        "export/formats.py",
        {
            "\n\n@dataclass(frozen=True)\nclass Format": (
                "from orchestrator.export.traced import Traced, write_traced\n"
            ),
            '        Format(\n            "pt2"': (
                '        Format("traced", "model.ts", nothing_to_install, write_traced, Traced, '
                'True, "pytorch", "{file}"),\n'
            ),
        },
    ),
]
SECTION = [
    Change(
        "report/sections/counted.py",
        new=(
            '"""How many trials there were."""\n\n'
            "from orchestrator.report.sections.parts import Line, Section\n\n\n"
            "def counted_section(view):\n"
            '    line = Line(f"{len(view.rows.trials)} trials were made.")\n'
            '    return Section("How many", "Of all states.", [line])\n'
        ),
    ),
    Change(
        "report/sections/__init__.py",
        {
            "\nSECTIONS": ("from orchestrator.report.sections.counted import counted_section\n"),
            "    honest_section,\n": "    counted_section,\n",
        },
    ),
]
STUDY = [
    "+experiment=digits_small",
    "made_up={noise: 0.01}",
    "tracking=none",
    "threads=1",
    "model.width=4",
    "study.name=small",
    "study.n_trials=4",
    "search.chain.targets=3",
    "search.chain.largest=0.9",
    "phases.confirm.max_models=1",
    "phases.confirm.baselines=[]",
    "objectives.costs=[flops,units]",
    "objectives.bounds={units_ratio: {most: 0.6}}",
]
EXPORT = [*STUDY, "job=export", "job.formats=[traced]", "select=max_quality"]
RUN = """
import sys
import orchestrator
from orchestrator.__main__ import main
assert orchestrator.__file__.startswith(sys.argv[1]), orchestrator.__file__
for words in {commands!r}:
    assert main(words) == 0, words
"""


def test_each_is_two_files() -> None:
    for changes in (COST, FORMAT, SECTION):
        assert len({change.file for change in changes}) == len(changes) == 2


@pytest.mark.slow
@pytest.mark.family
def test_all_else_follows_from_two_files(tmp_path: Path) -> None:
    project = tmp_path / "project"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "orchestrator", project / "orchestrator", ignore=leave)
    for name in ("lightning_modules", "conf"):
        (project / name).symlink_to(ROOT / name)
    for change in (*COST, *FORMAT, *SECTION):
        change.make(project)
    program = RUN.format(commands=[STUDY, EXPORT])
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(project)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _require_cost(tmp_path / "runs" / "small")
    _require_format(tmp_path / "runs" / "small" / "best")
    assert "4 trials were made." in (tmp_path / "runs" / "small" / "report.html").read_text()


def _require_cost(study: Path) -> None:
    """It is a column, its ratio is bounded, and the page can show it."""
    with (study / "trials.csv").open(newline="") as file:
        trials = list(csv.DictReader(file))
    above = [row["state"] for row in trials if float(row["units_ratio"]) > 0.6]
    within = [row["state"] for row in trials if float(row["units_ratio"]) <= 0.6]
    assert set(above) == {"rejected"}
    assert "completed" in within
    with (study / "front.csv").open(newline="") as file:
        (model,) = csv.DictReader(file)
    assert float(model["units"]) > 0
    assert (
        '"units":{"words":"units","limit":"+select.max_units_ratio"}'
        in (study / "report.html").read_text()
    )


def _require_format(best: Path) -> None:
    """Its file is written, compared and timed, and the plan has its digest."""
    (exported,) = json.loads((best / "exports.json").read_text())
    assert exported["reason"] == ""
    assert exported["latency_ms"] > 0
    assert exported["file"] == "model.ts"
    assert (best / "model.ts").is_file()
    assert list(json.loads((best / "plan.json").read_text())["exports"]) == ["model.ts"]
    assert "model.ts" in (best / "MODEL_CARD.md").read_text()
