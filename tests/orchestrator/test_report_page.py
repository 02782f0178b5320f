"""The report page says what a study holds, asks nothing of anybody, and runs no name as code."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import orchestrator
from orchestrator.__main__ import main
from orchestrator.files import write_atomic
from orchestrator.jobs.environment import environment
from orchestrator.jobs.view import ERRORS, Known, view_of, write_errors
from orchestrator.report.page import page
from orchestrator.report.sections import SECTIONS
from orchestrator.report.sections.decided import MOST_AXES, decided_section
from orchestrator.report.sections.front import front_section
from orchestrator.report.sections.honest import honest_section
from orchestrator.report.sections.parts import Chart, Line, PageTable, Section
from orchestrator.report.sections.pruned import pruned_section
from orchestrator.report.sections.volume import volume_parts
from orchestrator.report.sections.who_pays import who_pays_section
from orchestrator.report.view import GroupFacts, Network, StudyView
from orchestrator.results.decisions import Decisions, Importance
from orchestrator.results.rows import ConfirmedRow, Rows, RungRow, TrialRow, write_csv
from orchestrator.results.who_pays import SeedResults

SCRIPT = "</script><img src=x onerror=alert(1)>"
MOST_BYTES = 1_500_000
VOID = {"meta", "link", "br", "img", "input"}


def trial(number: int, parent: int | None = None, state: str = "completed") -> TrialRow:
    ratio = 0.9 * 0.97**number
    costs = {"flops": 1e6 * ratio, "params": 1e4 * ratio}
    ratios = {"flops": ratio, "params": ratio**2}
    quality = None if state == "failed" else 0.5 + 0.4 * ratio
    return TrialRow(
        number, state, 2, parent, quality, 1.0, 0.1, "search", "", "l2", "flops", costs, ratios
    )


def confirmed(origin: str, place: int | None, ratio: float) -> ConfirmedRow:
    costs = {"flops": 1e6 * ratio, "params": 1e4 * ratio}
    ratios = {"flops": ratio, "params": ratio**2}
    mean = 0.5 + 0.4 * ratio - (0.02 if origin == "uniform" else 0.0)
    return ConfirmedRow(origin, place, mean, 0.01, 2, "", "l2", "flops", costs, ratios)


def view(trials: int = 20, groups: int = 6, models: int = 4, group: str = "conv") -> StudyView:
    """A made-up study; `group` begins the names of its groups."""
    rows = [trial(n, n - 1 if n else None) for n in range(trials)]
    rows.append(trial(trials, state="failed"))
    front = [confirmed("front", n, rows[n].ratios["flops"]) for n in range(models)]
    baselines = [confirmed("uniform", row.trial, row.cost_ratio) for row in front]
    facts = [GroupFacts(f"{group}{n}", "channel", 16, 1 / groups) for n in range(groups)]
    kept = {str(n): {fact.name: (n + 1) / 16 for fact in facts} for n in range(models)}
    return StudyView(
        name="small",
        quality="accuracy",
        sign=1.0,
        rows=Rows(rows, front, baselines, confirmed("dense", None, 1.0)),
        network=Network(facts, {"fc": "its outputs are the classes"}),
        kept=kept,
        rungs=[RungRow(1, trials, 0.9, 0.5, None, None)],
        summary={"phases": {"finetune": 12.0}, "seconds": 20.0, "failed": {"trial-3": "no disk"}},
        decisions=decided(trials),
        tested={name: by_seed(name) for name in ("dense", *kept)},
        errors={fact.name: [(n / 16, 0.01 * n**2) for n in range(17)] for fact in facts},
    )


def by_seed(name: str) -> SeedResults:
    """Two seeds; each smaller model loses more of the cats."""
    cats = 0.9 if name == "dense" else 0.8 - 0.01 * int(name)
    by_class = [{"cat": cats + seed, "dog": 0.7} for seed in (0.0, 0.02)]
    return SeedResults([{"accuracy": 0.8}, {"accuracy": 0.8}], by_class)


def decided(trials: int) -> Decisions:
    """Twelve decisions that differ, of which the first ones matter more, and one that does not."""
    made = {}
    for n in range(trials):
        numbers = {f"number{place}": n / (place + 1) for place in range(11)}
        made[n] = {**numbers, "shape": ("linear", "cubic")[n % 2], "same": 1}
    importance = [Importance(f"number{place}", 0.02 * (10 - place), 0.1) for place in range(10)]
    return Decisions(made, importance)


class Read(HTMLParser):
    """What is open, which addresses are asked for, and the headings."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def data_of(content: str) -> dict:
    found = re.search(r'id="data">(.*?)</script>', content, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_is_whole_and_has_one_part_for_each_section() -> None:
    content = page(view())
    read = Read(content)
    assert read.open == []
    assert read.counts["section"] == read.counts["h2"] == len(SECTIONS)
    assert content.startswith("<!DOCTYPE html>")


def test_the_page_asks_for_no_address() -> None:
    content = page(view())
    assert Read(content).addresses == []
    assert "default-src 'none'" in content
    assert "sourceMappingURL" not in content
    assert "url(" not in content.split("<script", 1)[0]


def test_the_page_without_data_is_small() -> None:
    empty = page(StudyView("empty", "accuracy", 1.0, Rows()))
    assert len(empty.encode()) < MOST_BYTES


@pytest.mark.parametrize(
    "rows",
    [Rows(), Rows(trials=view().rows.trials), replace(view().rows, baselines=(), dense=None)],
)
def test_what_is_not_there_yet_is_left_out(rows: Rows) -> None:
    content = page(replace(view(), rows=rows, kept={}, rungs=(), summary={}))
    assert Read(content).counts["section"] == len(SECTIONS)


def test_a_quality_that_is_no_number_is_null() -> None:
    rows = replace(
        view().rows, baselines=[replace(confirmed("uniform", 1, 0.4), test_std=math.nan)]
    )
    values = data_of(page(replace(view(), rows=rows)))["charts"]["front"]["data"]["values"]
    assert [record["spread"] for record in values if record["what"] == "baseline"] == [None]


def test_names_are_text_and_never_markup() -> None:
    wicked = replace(view(group=SCRIPT), name=SCRIPT, quality=SCRIPT)
    content = page(wicked)
    assert SCRIPT not in content
    assert "img" not in Read(content).counts
    assert Read(content).counts["script"] == Read(page(view())).counts["script"]
    assert data_of(content)["study"] == SCRIPT


def test_every_chart_says_what_it_shows_and_follows_the_model_that_is_picked() -> None:
    for section in SECTIONS:
        for part in section(view()).parts:
            if isinstance(part, Chart):
                assert part.spec["description"]
                assert {"name": "picked", "value": None} in part.spec["params"]


def chart_of(section: Section, name: str) -> dict:
    (chart,) = [part for part in section.parts if isinstance(part, Chart) and part.name == name]
    return chart.spec


def test_the_most_important_decisions_and_the_outcomes_have_an_axis() -> None:
    spec = chart_of(decided_section(view()), "decisions")
    words = spec["encoding"]["x"]["sort"]
    assert words == [*[f"number{n}" for n in range(MOST_AXES - 2)], "accuracy", "FLOPs left"]
    records = spec["layer"][0]["data"]["values"]
    assert [record["trial"] for record in records] == [str(n) for n in range(20)]
    assert records[0]["at"][0] == 0.0
    assert records[-1]["at"][0] == 1.0


def test_choices_stand_on_an_axis_beside_numbers() -> None:
    few = Decisions({n: {"schedule.shape": ("linear", "cubic")[n % 2]} for n in range(20)})
    section = decided_section(replace(view(), decisions=few))
    spec = chart_of(section, "decisions")
    assert [record["at"][0] for record in spec["layer"][0]["data"]["values"][:2]] == [1.0, 0.0]
    texts = [mark["text"] for mark in spec["layer"][1]["data"]["values"]]
    assert texts[:2] == ["cubic", "linear"]
    (line,) = [part for part in section.parts if isinstance(part, Line)]
    assert "too few" in line.text


def test_the_class_that_pays_most_is_named() -> None:
    section = who_pays_section(view())
    line, _, table, *_ = section.parts
    assert isinstance(line, Line)
    assert line.text.startswith("Class cat loses most in 4 of 4 models.")
    # the greatest loss is that of trial 3, whose cats fell from 0.91 to 0.78
    assert line.text.endswith("class cat in trial 3: -0.1300 ± 0.0200.")
    assert isinstance(table, PageTable)
    assert table.trials == ["0", "1", "2", "3"]
    assert chart_of(section, "who-pays")["layer"][1]["encoding"]["y"]["sort"] == ["cat", "dog"]


def test_a_task_that_tells_no_classes_shows_its_metrics() -> None:
    dense = SeedResults([{"accuracy": 0.8, "loss": 0.5, "odd": 1.0}])
    model = SeedResults([{"accuracy": 0.76, "loss": 0.6, "odd": 2.0}])
    signs = {"accuracy": 1.0, "loss": -1.0}
    shown = replace(view(models=1), tested={"dense": dense, "0": model}, signs=signs)
    section = who_pays_section(shown)
    line = section.parts[0]
    assert isinstance(line, Line)
    assert line.text.startswith("Metric loss loses most in 1 of 1 models.")
    assert "metric loss in trial 0: -20.0 ± 0.0 %" in line.text
    # changes of a tenth of a percent are told apart
    encoding = chart_of(section, "who-pays")["layer"][1]["encoding"]
    assert encoding["x"]["axis"] == {"format": "+.2~%"}


def test_the_command_names_options_that_select_has() -> None:
    settings = yaml.safe_load(Path("conf/select/max_quality.yaml").read_text())
    for cost, said in data_of(page(view()))["costs"].items():
        known = f"max_{cost}_ratio" in settings
        assert said["limit"] == f"{'' if known else '+'}select.max_{cost}_ratio"


def test_a_baseline_is_compared_with_the_nearest_model_in_pooled_spreads() -> None:
    rows = Rows(
        (),
        [confirmed("front", 1, 0.5), confirmed("front", 2, 0.1)],
        [replace(confirmed("uniform", 1, 0.4), test_mean=0.68, test_std=0.03)],
    )
    (table, *_) = honest_section(replace(view(), rows=rows)).parts
    assert isinstance(table, PageTable)
    # the front: 0.7 with a spread of 0.01
    pooled = math.sqrt((0.01**2 + 0.03**2) / 2)
    assert table.rows[0][3] == "trial 1, 50.0 %"
    assert table.rows[0][5:] == ["+0.0200", f"{0.02 / pooled:+.1f}", "neither"]


def test_the_volume_rises_with_each_trial_that_none_dominates() -> None:
    points = [(0.9, 0.5), (0.8, 0.6), (0.8, 0.25), (0.4, 0.1)]
    rows = [
        replace(trial(number), quality=quality, ratios={"flops": ratio})
        for number, (quality, ratio) in enumerate(points)
    ]
    summary = {"reference": {"accuracy": 0.5, "least_ratio": 1 / 16}}
    shown = replace(view(), rows=Rows(rows), summary=summary)
    line, chart = volume_parts(shown)
    assert isinstance(chart, Chart)
    records = chart.spec["data"]["values"]
    # 0.4 above the reference over the first of four octaves, then 0.3 over the second
    assert [record["volume"] for record in records] == pytest.approx([0.1, 0.1, 0.175, 0.175])
    assert [record["raised"] for record in records] == [True, False, True, False]
    assert isinstance(line, Line)
    assert "rose last with trial 2" in line.text


def test_the_command_that_repeats_the_study_stands_on_the_page() -> None:
    summary = {"command": "python -m orchestrator 'a=<b>'"}
    content = page(replace(view(), summary=summary))
    assert "<code>python -m orchestrator &#x27;a=&lt;b&gt;&#x27;</code>" in content


def test_less_is_better_turns_the_axis() -> None:
    (chart,) = [p for p in front_section(replace(view(), sign=-1.0)).parts if isinstance(p, Chart)]
    scale = chart.spec["encoding"]["y"]["scale"]
    low, high = scale["domain"]
    assert scale["reverse"]
    assert low < high


def test_a_group_is_gone_with_its_block(tmp_path: Path) -> None:
    facts = [
        GroupFacts("block.conv", "channel", 8, 0.5, block="block"),
        GroupFacts("block", "block", 1, 0.5),
        GroupFacts("stem", "channel", 4, 0.5),
    ]
    known = Known("accuracy", 1.0, ("flops",), Network(facts))
    plan = {"keep": {"block.conv": [[0, 6]], "block": []}, "density": {"fc.weight": 0.25}}
    write_atomic(tmp_path / "models" / "1" / "plan.json", json.dumps(plan))
    shown = view_of(tmp_path, known, Rows(front=[confirmed("front", 1, 0.5)]), (), {})
    gone = {"block.conv": 0.0, "block": 0.0, "stem": 1.0, "fc.weight": 0.25}
    assert shown.kept == {"1": gone}


def test_test_results_are_those_of_the_confirmation(tmp_path: Path) -> None:
    for label in ("dense", "trial-1", "uniform-2"):
        record = {"test": [{"accuracy": 0.9}], "by_class": [{"cat": 0.8}]}
        write_atomic(tmp_path / "confirm" / f"{label}.json", json.dumps(record))
    write_atomic(tmp_path / "confirm" / "trial-4.json", json.dumps({"test": [{"accuracy": 0.9}]}))
    front = [confirmed("front", n, 0.5) for n in (1, 3, 4)]
    rows = Rows((), [*front, confirmed("uniform", 2, 0.5)], (), confirmed("dense", None, 1.0))
    known = Known("accuracy", 1.0, ("flops",), Network())
    shown = view_of(tmp_path, known, rows, (), {}).tested
    assert list(shown) == ["dense", "1", "4", "uniform-2"]
    assert shown["1"].by_class == [{"cat": 0.8}]
    # as an earlier version wrote it
    assert not shown["4"].by_class


def test_a_checkout_that_is_not_installed_has_an_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.jobs.environment._PACKAGES", ("not-installed", "torch"))
    names = environment(orchestrator.load_settings({}))
    assert "not-installed" not in names
    assert {"torch", "python", "device", "seed"} <= set(names)


def test_the_job_refuses_a_folder_without_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["+experiment=digits_small", "job=report", "study.name=small"]
    assert main(words) == 2
    assert "shows a study that has a trial" in capsys.readouterr().err


def test_the_job_shows_a_study_that_is_not_confirmed_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv("runs/small/trials.csv", view().rows.trials, TrialRow)
    assert main(["+experiment=digits_small", "job=report", "study.name=small"]) == 0
    content = Path("runs/small/report.html").read_text()
    assert "No model is confirmed yet" in content
    settings = orchestrator.load_settings({"study": {"name": "small"}})
    assert orchestrator.report(settings).read_text() == content


def test_error_curves_stand_beside_what_was_pruned_with_each_models_place_on_them() -> None:
    spec = chart_of(pruned_section(view()), "errors")
    layers = {layer["name"]: layer for layer in spec["layer"]}
    lines = layers["curves"]["data"]["values"]
    assert {record["group"] for record in lines} == {f"conv{n}" for n in range(6)}
    places = layers["places"]["data"]["values"]
    assert len(places) == 4 * 6
    # model 3 keeps a quarter: 12 of 16 units are gone
    (place,) = [one for one in places if one["trial"] == "3" and one["group"] == "conv0"]
    assert place == {"trial": "3", "group": "conv0", "removed": 0.75, "error": 1.44}


@pytest.mark.parametrize("damaged", ["[]", '{"conv0": []}', '{"conv0": [[0.0]]}', '{"conv0'])
def test_damaged_error_curves_are_left_out(damaged: str, tmp_path: Path) -> None:
    known = Known("accuracy", 1.0, ("flops",), view().network)
    write_errors(tmp_path, view().errors)
    assert view_of(tmp_path, known, view().rows, (), {}).errors == view().errors
    (tmp_path / ERRORS).write_text(damaged)
    assert view_of(tmp_path, known, view().rows, (), {}).errors == {}


def test_without_errors_there_is_no_curve() -> None:
    parts = pruned_section(replace(view(), errors={})).parts
    assert "errors" not in [part.name for part in parts if isinstance(part, Chart)]
