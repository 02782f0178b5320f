"""What an override or a file of one's own means: whose keys stay, and what the study is called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase

import orchestrator
from lightning_modules.errors import ConfigError
from orchestrator import settings as schema
from orchestrator.__main__ import main
from orchestrator.study_name import LONGEST, study_name

SMALL = "+experiment=digits_small"
MINE = """
# @package _global_
study: {name: mine}
model: {_target_: my.Net, hidden: 24}
data: {_target_: my.Data, folder: here}
task: {_target_: my.Task}
phases: {finetune: {optimizer: {_target_: torch.optim.AdamW, lr: 0.001}}}
"""


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """The configurations that the job was given."""
    seen: list[dict[str, Any]] = []

    def load(config: dict[str, Any], command: str) -> Any:
        seen.append(config)
        return SimpleNamespace(job=SimpleNamespace(build=lambda settings: None, target=""))

    monkeypatch.setattr(schema, "load", load)
    monkeypatch.chdir(tmp_path)
    return seen


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A folder with an experiment of one's own, as the override that names it."""
    files = {
        "experiment/mine.yaml": MINE,
        "experiment/nameless.yaml": "# @package _global_\nseed: 3",
        "data/more_digits.yaml": "defaults: [digits]\n_target_: my.digits\ncolours: 3",
    }
    for name, text in files.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"


def test_one_file_says_all_of_an_own_model_data_and_task(
    composed: list[dict[str, Any]], own: str
) -> None:
    assert main(["+experiment=mine", own]) == 0
    assert composed[0]["model"] == {"_target_": "my.Net", "hidden": 24}
    assert composed[0]["data"] == {"_target_": "my.Data", "folder": "here"}
    assert composed[0]["task"] == {"_target_": "my.Task"}
    assert composed[0]["phases"]["finetune"]["optimizer"] == {
        "_target_": "torch.optim.AdamW",
        "lr": 0.001,
    }
    assert composed[0]["phases"]["train"]["optimizer"]["momentum"] == 0.9


def test_what_comes_after_another_target_is_said_of_it(
    composed: list[dict[str, Any]], own: str
) -> None:
    assert (
        main(["+experiment=mine", own, "model.hidden=3", "+model.depth=2", "data.folder=there"])
        == 0
    )
    assert composed[0]["model"] == {"_target_": "my.Net", "hidden": 3, "depth": 2}
    assert composed[0]["data"] == {"_target_": "my.Data", "folder": "there"}


@pytest.mark.parametrize(
    "words",
    [["model.width=8", "model._target_=my.Net"], ["model._target_=my.Net", "model.width=8"]],
)
def test_the_command_line_is_said_at_once(composed: list[dict[str, Any]], words: list[str]) -> None:
    assert main([SMALL, *words]) == 0
    assert composed[0]["model"] == {"_target_": "my.Net", "width": 8}


def test_a_key_without_a_value_of_another_class_is_not_asked_for(
    composed: list[dict[str, Any]],
) -> None:
    assert main([SMALL, "model=timm", "model._target_=my.Net"]) == 0
    assert composed[0]["model"] == {"_target_": "my.Net"}


def test_the_same_target_keeps_its_keys(composed: list[dict[str, Any]]) -> None:
    assert main([SMALL, "model._target_=lightning_modules.models.SmallResNet"]) == 0
    assert composed[0]["model"]["width"] == 16


def test_a_file_that_builds_on_another_keeps_what_it_took_in(
    composed: list[dict[str, Any]], own: str
) -> None:
    assert main([SMALL, "data=more_digits", own]) == 0
    assert composed[0]["data"]["_target_"] == "my.digits"
    assert (composed[0]["data"]["size"], composed[0]["data"]["colours"]) == (8, 3)


@pytest.mark.parametrize(
    "target",
    [
        "space",
        "sampler",
        "stopping",
        "tracking",
        "job",
        "method.criterion",
        "phases.train.optimizer",
    ],
)
def test_every_recipe_is_replaced_whole(composed: list[dict[str, Any]], target: str) -> None:
    assert main([SMALL, f"{target}._target_=my.own"]) == 0
    found: Any = composed[0]
    for name in target.split("."):
        found = found[name]
    assert found == {"_target_": "my.own"}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([SMALL], "digits_small"),
        (["search.lineage=false"], "study-search.lineage_false"),
        (
            [SMALL, "method=taylor", "method.scope=global"],
            "digits_small-method_taylor-method.scope_global",
        ),
        (
            [SMALL, "method.scope=global", "method=taylor"],
            "digits_small-method_taylor-method.scope_global",
        ),
        (
            [
                SMALL,
                "study.n_trials=3",
                "study.budget=20min",
                "workers=2",
                "threads=1",
                "device=cpu",
            ],
            "digits_small",
        ),
        (
            [
                SMALL,
                "job=inspect",
                "tracking=none",
                "phases.confirm.rounds=1",
                "memory_format=contiguous",
            ],
            "digits_small",
        ),
        ([SMALL, "hydra.run.dir=.", "hydra/job_logging=none"], "digits_small"),
        ([SMALL, "method=taylor", "study.name=mine"], "mine"),
        (
            [SMALL, "method=search", "method.among=[l1,taylor]"],
            "digits_small-method_search-method.among_l1.taylor",
        ),
        (
            [SMALL, "~phases.train.optimizer.momentum"],
            "digits_small-phases.train.optimizer.momentum_no",
        ),
        (
            [SMALL, "objectives.bounds={latency_ms: {most: 3.0}}"],
            "digits_small-objectives.bounds_latency_ms.most.3.0",
        ),
    ],
)
def test_a_study_is_called_after_what_was_asked_for(
    composed: list[dict[str, Any]], words: list[str], name: str
) -> None:
    assert main(words) == 0
    assert composed[0]["study"]["name"] == name


def test_an_experiment_that_names_no_study_gives_it_its_own_name(
    composed: list[dict[str, Any]], own: str
) -> None:
    assert main(["+experiment=nameless", own]) == 0
    assert composed[0]["study"]["name"] == "nameless"


def test_another_main_file_is_asked_for_its_own_keys(
    composed: list[dict[str, Any]], tmp_path: Path, own: str
) -> None:
    main_file = "defaults: [config, _self_]\nmodel: {_target_: my.Net}\nstudy: {name: theirs}"
    (tmp_path / "conf" / "theirs.yaml").write_text(main_file)
    folder = str(tmp_path / "conf")
    assert (
        main(["--config-dir", folder, "--config-name", "theirs", "seed=2", "data._target_=my.Data"])
        == 0
    )
    assert composed[0]["data"] == {"_target_": "my.Data"}
    assert composed[0]["study"]["name"] == "theirs-seed_2-data._target__my.Data"


@pytest.mark.slow
def test_each_run_of_a_sweep_is_a_study_of_its_own(composed: list[dict[str, Any]]) -> None:
    assert main(["-m", SMALL, "method=l1,l2"]) == 0
    assert [config["study"]["name"] for config in composed] == [
        "digits_small-method_l1",
        "digits_small-method_l2",
    ]


def test_a_name_is_bounded_without_secrets_and_still_its_own() -> None:
    asked = [
        ("data.url", "postgresql://me:pa55@h/d"),
        *((f"model.key_{number}", "x") for number in range(30)),
    ]
    names = {study_name("base", asked), study_name("base", [*asked, ("model.last", "1")])}
    assert len(names) == 2
    for name in names:
        assert len(name) <= LONGEST
        assert "pa55" not in name
        schema.StudySettings(name=name, n_trials=1)


def test_a_partial_mapping_is_laid_over_the_defaults() -> None:
    found = orchestrator.load_settings(
        {"method": "taylor", "experiment": "digits_small", "study": {"n_trials": 4}}
    )
    assert (found.method.name, found.study.n_trials) == ("taylor", 4)
    assert found.study.name == "digits_small-method_taylor"
    assert found.model.arguments["width"] == 16


def test_a_partial_mapping_may_say_what_the_command_line_can() -> None:
    found = orchestrator.load_settings(
        {
            "method": "search",
            "method.among": ["l1", "l2"],
            "model": {"_target_": "my.Net", "hidden": 3},
            "sampler": "qmc",
            "seed": 5,
            "study": {"name": "mine"},
        }
    )
    assert [method.name for method in found.method.among] == ["l1", "l2"]
    assert (found.model.target, dict(found.model.arguments)) == ("my.Net", {"hidden": 3})
    assert found.sampler.arguments["seed"] == 5
    assert found.study.name == "mine"


def test_a_whole_mapping_is_taken_as_it_is() -> None:
    whole = orchestrator.load_settings({"study": {"name": "x"}}).plain()
    assert orchestrator.load_settings(whole).plain() == whole


def test_groups_of_ones_own_are_found_from_python(own: str, tmp_path: Path) -> None:
    found = orchestrator.load_settings({"experiment": "mine"}, searchpath=[tmp_path / "conf"])
    assert (found.model.target, found.study.name) == ("my.Net", "mine")


def test_hydra_is_left_as_it_was() -> None:
    VersionBase.instance().version_base = None
    orchestrator.load_settings({"seed": 1})
    assert not GlobalHydra.instance().is_initialized()
    assert VersionBase.instance().version_base is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"method": "tailor"}, "method has no 'tailor'; nearest: taylor"),
        ({"stduy": {"n_trials": 4}}, "stduy is not a setting; nearest: study"),
        (
            {"study": {"n_trails": 4}},
            "study.n_trails is not a setting; nearest: study.n_trials|n_trials",
        ),
        ({"model": "timm"}, "model.name must have a value"),
    ],
)
def test_a_mistake_in_a_mapping_is_one_message(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        orchestrator.load_settings(config)


def test_without_arguments_help_is_shown_and_nothing_begun(
    composed: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code in (0, None)
    assert "+experiment=digits_small  " in capsys.readouterr().out
    assert composed == []
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_the_default_class_does_not_take_is_told_with_its_plus_sign(
    composed: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SMALL, "model._target_=my.Net", "model.hidden=3"]) == 2
    said = capsys.readouterr().err
    assert "has no 'model.hidden'" in said
    assert "to give a class of your own what it takes: +model.hidden=3" in said


def test_the_version_is_this_projects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pruning-orchestrator 0.")


def test_a_folder_of_configs_that_is_not_there_is_refused(
    composed: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SMALL, "hydra.searchpath=[file:///nowhere/conf]"]) == 2
    assert (
        "hydra.searchpath must name folders that are there; got 'file:///nowhere/conf'"
        in capsys.readouterr().err
    )
    assert composed == []
