"""`job=compare`: studies side by side, repetitions with other seeds as one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import orchestrator
from lightning_modules.errors import ConfigError
from orchestrator.__main__ import Codes, _compare_sweep, main
from orchestrator.jobs.compare import read_studies, studies_in
from orchestrator.report.comparison import Compared, comparison_sections, scores
from orchestrator.report.page import html
from orchestrator.results.rows import ConfirmedRow, RungRow, TrialRow, write_csv
from orchestrator.results.variants import variants
from orchestrator.search.front import hypervolume
from tests.orchestrator.test_report_page import Read, data_of, view

PLAIN: dict[str, Any] = {
    "method": {"name": "l1", "criterion": {"p": 1}},
    "seed": 0,
    "study": {"name": "a"},
    "phases": {"confirm": {"seeds": [0, 1]}},
}


def config(**changes: Any) -> dict[str, Any]:
    return {**PLAIN, **changes}


def study(folder: Path, better: float = 0.0, quality: str = "accuracy", **changes: Any) -> Path:
    """A finished study as its files; its models are better by `better` than those of another."""
    made = view()
    front = [replace(row, test_mean=row.test_mean + better) for row in made.rows.front]
    folder.mkdir(parents=True)
    assert made.rows.dense is not None
    write_csv(folder / "trials.csv", made.rows.trials, TrialRow)
    write_csv(folder / "rungs.csv", made.rungs, RungRow)
    write_csv(folder / "front.csv", front, ConfirmedRow)
    write_csv(folder / "baselines.csv", [made.rows.dense, *made.rows.baselines], ConfirmedRow)
    known = {
        "quality": quality,
        "sign": 1.0,
        "costs": ["flops"],
        "groups": [asdict(group) for group in made.network.groups],
        "skipped": {},
    }
    (folder / "groups.json").write_text(json.dumps(known))
    summary = {"reference": {quality: 0.5}, "seconds": 10.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(yaml.safe_dump(config(**changes)))
    return folder


def test_repetitions_with_other_seeds_have_one_label() -> None:
    configs = [config(), config(seed=1), config(method={"name": "l2", "criterion": {"p": 2}})]
    labels = variants(configs, ["a-0", "a-1", "b"])
    assert labels == ["method=l1", "method=l1", "method=l2"]
    assert variants(configs[:2], ["a-seed_0", "a-seed_1"]) == ["a-seed", "a-seed"]


def test_studies_that_a_label_does_not_tell_apart_are_named() -> None:
    many = {f"key{number}": 0 for number in range(5)}
    configs = [
        config(data=many),
        config(data={**many, "key4": 1}),
        config(data={**many, "key0": 1}),
    ]
    assert len(set(variants(configs, ["a", "b", "c"]))) == 3
    hidden = [config(data={**many, **{f"key{n}": i * (n != 4) for n in range(4)}}) for i in (0, 1)]
    assert len(set(variants([*hidden, config(data={**many, "key4": 9})], ["a", "b", "c"]))) == 3


def test_the_volume_is_that_of_the_front_above_a_shared_reference(tmp_path: Path) -> None:
    folders = [
        study(tmp_path / "a"),
        study(tmp_path / "b", better=0.02, seed=1),
        study(tmp_path / "c", better=0.1, method={"name": "l2"}),
    ]
    compared = read_studies(folders)
    best, other = scores(compared)
    assert (best.variant, other.variant) == ("method=l2", "method=l1")
    assert other.studies == ["a", "b"]
    rows = compared.views[2].rows.front
    expected = hypervolume(
        [row.test_mean for row in rows], [row.ratios["flops"] for row in rows], 0.5, 1 / 32
    )
    assert best.volume == (pytest.approx(expected), None)
    assert other.volume[1] is not None
    assert other.volume[1] > 0.0


def test_the_best_under_a_budget_is_none_where_no_model_is(tmp_path: Path) -> None:
    compared = read_studies([study(tmp_path / "a"), study(tmp_path / "b", seed=1)])
    (score,) = scores(compared)
    assert score.within == {0.5: None, 0.25: None}


def test_the_page_shows_every_model_once(tmp_path: Path) -> None:
    compared = read_studies([study(tmp_path / "a"), study(tmp_path / "b", seed=1)])
    content = html("two", comparison_sections(compared), "accuracy", 1.0)
    assert Read(content).open == []
    records = data_of(content)["charts"]["front"]["data"]["values"]
    trials = [record["trial"] for record in records]
    assert len(trials) == len(set(trials)) == 8


def test_groups_are_compared_only_where_the_network_is_the_same(tmp_path: Path) -> None:
    one, other = view(groups=6), view(groups=7)
    titles = [section.title for section in comparison_sections(Compared([one, other], ["a", "b"]))]
    assert titles == ["The fronts", "How they compare"]
    assert len(comparison_sections(Compared([one, one], ["a", "b"]))) == 3


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2 finished studies"):
        read_studies([study(tmp_path / "a")])
    other = study(tmp_path / "b", quality="f1")
    with pytest.raises(ConfigError, match=r"these have accuracy \(a\), f1 \(b\)"):
        read_studies([tmp_path / "a", other])
    with pytest.raises(ConfigError, match=r"must name finished studies.*none is 'd'.*'a', 'b'"):
        studies_in(tmp_path, ["a", "d"])
    (tmp_path / "c").mkdir()
    with pytest.raises(ConfigError, match=r"a finished study has groups\.json"):
        read_studies([tmp_path / "a", tmp_path / "c"])


def test_names_may_be_patterns_and_none_means_all(tmp_path: Path) -> None:
    for name in ("seed_0", "seed_1", "other"):
        study(tmp_path / name)
    assert [path.name for path in studies_in(tmp_path, ["seed_*"])] == ["seed_0", "seed_1"]
    assert len(studies_in(tmp_path, [])) == 3


def test_the_job_and_python_write_the_same_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        study(Path("runs") / name)
    assert main(["job=compare"]) == 0
    assert "hypervolume over FLOPs" in capsys.readouterr().out
    page = Path("runs/comparison.html").read_bytes()
    orchestrator.compare(["runs/a", "runs/b"], "mine.html")
    assert Path("mine.html").read_bytes() == page
    assert main(["job=compare", "job.studies=[nowhere]"]) == 2
    assert "none is 'nowhere'" in capsys.readouterr().err


def test_a_sweep_ends_with_its_studies_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    codes = Codes(scratch)
    codes.add_study(study(tmp_path / "runs" / "a"))
    _compare_sweep(codes)
    assert capsys.readouterr().out == ""
    codes.add_study(study(tmp_path / "runs" / "b", seed=1))
    _compare_sweep(codes)
    assert "comparison.html" in capsys.readouterr().out
    assert codes.worst() == 0


def test_studies_without_a_common_cost_are_told(tmp_path: Path) -> None:
    study(tmp_path / "a")
    other = study(tmp_path / "b")
    rows = [
        replace(row, axis="size_mb", costs={"size_mb": 1.0}, ratios={"size_mb": 0.5})
        for row in view().rows.front
    ]
    write_csv(other / "front.csv", rows, ConfirmedRow)
    with pytest.raises(ConfigError, match=r"none in common \(a: flops, b: size_mb\)"):
        read_studies([tmp_path / "a", other])
