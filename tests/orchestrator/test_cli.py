"""The command line: what is said, on which stream, with which exit code."""

import copy
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from lightning_modules.errors import ConfigError
from orchestrator import settings as schema
from orchestrator.__main__ import Stopped, conf_folder, main

CONFIG = """
defaults:
  - hydra: default
  - model: resnet50
  - _self_
study: {name: x, n_trials: 3}
tracking: {uri: 'sqlite:///mlflow.db'}
"""
HEADLESS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from orchestrator import settings as schema
from orchestrator.__main__ import main
"""
Run = Callable[..., int]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A small tree with the real hydra group."""
    folder = tmp_path / "conf"
    files = {
        "config.yaml": CONFIG,
        "hydra/default.yaml": (conf_folder() / "hydra" / "default.yaml").read_text(),
        "model/resnet18.yaml": "name: resnet18",
        "model/resnet50.yaml": "name: resnet50",
        "experiment/resnet50.yaml": "# @package _global_\nstudy: {name: resnet50}",
        "experiment/hollow.yaml": "# @package _global_\nstudy: {out: '???'}",
        "experiment/broken.yaml": "# @package _global_\nstudy: {name: [}",
        "experiment/crooked.yaml": "# @package _global_\nstudy: {name: '${modle.name}'}",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, commands: list[str]) -> list[dict[str, Any]]:
    """Configurations that a stand-in job was given; `study.n_trials` 5 is the user's mistake, 6 a
    bug.
    """
    seen: list[dict[str, Any]] = []

    def build(settings: Any) -> None:
        trials = settings.config["study"]["n_trials"]
        if trials == 5:
            raise ConfigError("five is one too many for http://me:pa55@h")
        if trials == 6:
            raise RuntimeError("a bug at http://me:pa55@h")
        if trials == 7:
            raise KeyboardInterrupt
        if trials == 8:
            raise Stopped(signal.SIGTERM)

    def load(config: dict[str, Any], command: str) -> Any:
        seen.append(config)
        commands.append(command)
        return SimpleNamespace(job=SimpleNamespace(build=build, target=""), config=config)

    monkeypatch.setattr(schema, "load", load)
    return seen


@pytest.fixture
def commands() -> list[str]:
    """Command lines that the settings of the stand-in job were made with."""
    return []


@pytest.fixture
def run(
    conf: Path, jobs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return lambda *words: main(words, conf)


def test_the_job_gets_the_composed_configuration_and_nothing_is_left_behind(
    run: Run, jobs: list[dict[str, Any]], commands: list[str]
) -> None:
    argv, handler = list(sys.argv), signal.getsignal(signal.SIGINT)
    assert run("+experiment=resnet50", "model=resnet18", "study.n_trials=4") == 0
    assert jobs == [
        {
            "model": {"name": "resnet18"},
            "study": {"name": "resnet50-model_resnet18", "n_trials": 4},
            "tracking": {"uri": "sqlite:///mlflow.db"},
        }
    ]
    assert commands == [
        "python -m orchestrator +experiment=resnet50 model=resnet18 study.n_trials=4"
    ]
    assert os.listdir() == []
    assert (sys.argv, signal.getsignal(signal.SIGINT)) == (argv, handler)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["+experiment=resnet5"],
            (
                "experiment has no 'resnet5'; nearest: resnet50; available: broken, crooked, "
                "hollow, "
                "resnet50"
            ),
        ),
        (
            ["experiment=resnet50"],
            "experiment must be chosen with a plus sign: +experiment=resnet50; available: ",
        ),
        (
            ["model=resnet19"],
            "model has no 'resnet19'; nearest: resnet18, resnet50; available: resnet18, resnet50",
        ),
        (
            ["study.n_trails=3"],
            "the configuration has no 'study.n_trails'; nearest: study.n_trials",
        ),
        (
            ["+experiment=resnet50", "stduy.n_trials=3", "a.b=1"],
            "has no 'stduy.n_trials'; nearest: study.n_trials",
        ),
        (["modle=resnet18"], "the configuration has no 'modle'; nearest: model"),
        (
            ["study.n_trials.x=3"],
            "the configuration has no 'study.n_trials.x'; nearest: study.n_trials",
        ),
        (["study.n_trials=[3"], "an override is key=value; 'study.n_trials=[3' cannot be read"),
        (["+experiment"], "an override is key=value; '+experiment' cannot be read"),
        (["+model=resnet18"], "model"),
        (["--resolve"], "--resolve"),
        (
            ["-m", "model=resnet18,resnet50", "study.n_trails=3"],
            "the configuration has no 'study.n_trails'; nearest: study.n_trials",
        ),
        (["-m", "+experiment=resnet5,resnet50"], "experiment has no 'resnet5'; nearest: resnet50"),
        (["+experiment=hollow"], "study.out must have a value; give it as study.out=..."),
        (["+experiment=crooked"], "study.name: "),
        (
            ["+experiment=broken"],
            "a configuration file must be YAML; one cannot be read: while parsing",
        ),
        (["study.n_trials=5"], "five is one too many for http://me:***@h"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_bug_is_a_traceback_without_the_password_and_exit_code_1(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("study.n_trials=6", "tracking.uri=http://me:pa55@h") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "RuntimeError: a bug at http://me:***@h" in said
    assert "pa55" not in said.replace('raise RuntimeError("a bug at http://me:***@h")', "")


@pytest.mark.parametrize(("trials", "code"), [(7, 130), (8, 143)])
def test_a_stop_says_how_to_go_on(
    run: Run, capsys: pytest.CaptureFixture[str], trials: int, code: int
) -> None:
    assert run(f"study.n_trials={trials}", "tracking.uri=http://me:pa55@h") == code
    said = capsys.readouterr().err
    assert "give the same command again: python -m orchestrator" in said
    assert "***@h" in said
    assert "pa55" not in said


def test_runs_of_a_multirun_go_in_turn_and_one_mistake_does_not_stop_the_others(
    run: Run,
    jobs: list[dict[str, Any]],
    commands: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("-m", "study.n_trials=5,4", "tracking.uri=http://me:pa55@h") == 2
    assert [config["study"]["n_trials"] for config in jobs] == [5, 4]
    assert commands[1] == ("python -m orchestrator study.n_trials=4 'tracking.uri=http://me:***@h'")
    captured = capsys.readouterr()
    assert "run 1: study.n_trials=4 tracking.uri=http://me:***@h" in captured.err
    assert "pa55" not in captured.out + captured.err + Path("runs/multirun.yaml").read_text()
    assert "me:***@h" in Path("runs/multirun.yaml").read_text()


def test_the_users_own_configs_are_found(
    run: Run, jobs: list[dict[str, Any]], tmp_path: Path
) -> None:
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /model: resnet18]\nstudy: {name: mine}"
    )
    assert run("+experiment=mine", f"hydra.searchpath=[file://{own.parent}]") == 0
    assert (jobs[0]["model"]["name"], jobs[0]["study"]["name"]) == ("resnet18", "mine")


def test_the_users_own_configs_are_among_the_nearest_names(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nstudy: {name: mine}")
    assert run("+experiment=mien", f"hydra.searchpath=[file://{own.parent}]") == 2
    assert "experiment has no 'mien'; nearest: mine" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--cfg", "job"], ["--help"], ["study.n_trails=3"], ["+experiment=resnet5"]]
)
def test_answers_without_a_job_import_nothing_heavy(
    conf: Path, tmp_path: Path, words: list[str]
) -> None:
    heavy = "('torch', 'mlflow', 'matplotlib', 'optuna', 'pytorch_lightning', 'rich', 'numpy')"
    code = f"""{HEADLESS}
try:
    main({words!r}, Path({str(conf)!r}))
except SystemExit:
    pass
print('loaded:', [name for name in {heavy} if name in sys.modules])
"""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    print(f"{' '.join(words)}: {time.perf_counter() - begun:.2f} s")
    assert done.stdout.endswith("loaded: []\n")
    if words == ["--help"]:
        for part in (
            "+experiment=resnet50",
            "model: resnet18, resnet50",
            "pareto.png",
            "hydra.searchpath",
        ):
            assert part in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_runs_the_cleaning_up(
    conf: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    script = f"""{HEADLESS}
import time

def build(settings):
    try:
        print('ready', flush=True)
        time.sleep(60)
    finally:
        print('cleaned up', flush=True)

schema.load = lambda config, command: SimpleNamespace(job=SimpleNamespace(build=build, target=""))
sys.exit(main(['study.n_trials=4'], Path({str(conf)!r})))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == "cleaned up\n"
    assert err.splitlines()[-1].endswith(
        "give the same command again: python -m orchestrator study.n_trials=4"
    )
    assert "Traceback" not in err


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def choices() -> list[list[str]]:
    """Every file of the real tree but the methods, as few command lines: one file of each group,
    then of each the next.

    The groups say nothing about one another's keys; an experiment does, and stands alone.
    """
    groups = sorted({path.parent.name for path in conf_folder().glob("*/*.yaml")})
    plain = [
        group for group in groups if group not in ("hydra", "defaults", "experiment", "method")
    ]
    named = [[f"{group}={name}" for name in files(group)] for group in plain]
    together = [[word for word in words if word] for words in itertools.zip_longest(*named)]
    return [*together, *([f"+experiment={name}"] for name in files("experiment"))]


# One method of each kind: several methods, units then weights, weights, a penalty in training,
# blocks.
KINDS = ["search", "hybrid_nm", "weight_l1", "group_lasso", "depth"]


@pytest.mark.parametrize(
    "words", [*choices(), *([f"method={name}"] for name in KINDS)], ids=" ".join
)
def test_every_choice_of_the_real_tree_composes_into_valid_settings(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a choice leaves open (a folder, a model's name) is asked for by its key, and given."""
    monkeypatch.chdir(tmp_path)
    real = schema.load
    loaded: list[Any] = []

    def load(config: dict[str, Any], command: str) -> Any:
        loaded.append(real(config, command))
        return SimpleNamespace(job=SimpleNamespace(build=lambda settings: None, target=""))

    monkeypatch.setattr(schema, "load", load)
    asked: list[str] = []
    while main([*words, *asked]) == 2:
        said = capsys.readouterr().err
        key = re.fullmatch(r"(\S+) must have a value; give it as \1=\.\.\.\n", said)
        assert key is not None, said
        assert len(asked) < 8
        asked.append(f"{key[1]}=given")
    assert isinstance(loaded[0], schema.Settings)


def file_of(group: str, name: str) -> dict[str, Any]:
    """The keys of one file, over those of the files of its group that it begins with."""
    keys: dict[str, Any] = yaml.safe_load((conf_folder() / group / f"{name}.yaml").read_text())
    for other in keys.pop("defaults", []):
        keys = {**file_of(group, other), **keys}
    return keys


def with_method(name: str, rest: DictConfig) -> dict[Any, Any]:
    """`rest`, a configuration without a method, with the file's keys and the groups that the file
    chooses.
    """
    text = (conf_folder() / "method" / f"{name}.yaml").read_text()
    keys: dict[str, Any] = yaml.safe_load(text)
    config = copy.deepcopy(rest)
    OmegaConf.set_struct(config, False)
    for chosen in keys.pop("defaults", []):
        ((group, choice),) = chosen.items()
        group = group.removeprefix("override /")
        config[group] = file_of(group, choice)
    whole = text.startswith("# @package _global_\n")
    found = OmegaConf.to_container(
        OmegaConf.merge(config, keys if whole else {"method": keys}), resolve=True
    )
    assert isinstance(found, dict)
    return found


def test_every_method_of_the_real_tree_is_valid_settings() -> None:
    """As the command line composes it, without the command line, which takes half a second for
    each.
    """
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        rest = hydra.compose("config", ["~method"])
        composed = {
            name: hydra.compose("config", [f"method={name}"])
            for name in ("hybrid_nm", "group_lasso", "l2")
        }
    for name, config in composed.items():
        assert with_method(name, rest) == OmegaConf.to_container(config, resolve=True), name
    wrong = {}
    for name in files("method"):
        if name in KINDS:
            continue
        try:
            config = with_method(name, rest)
            assert "???" not in str(config)
            schema.load(config)
        except Exception as error:
            wrong[name] = str(error)
    assert wrong == {}
    assert len(files("method")) >= 40
