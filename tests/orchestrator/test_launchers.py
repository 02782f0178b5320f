"""Sweeps whose runs are begun in processes of their own, by Hydra's launchers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TINY = [
    "made_up={}",
    "+experiment=digits_small",
    "tracking=none",
    "threads=1",
    "model.width=4",
    "study.n_trials=2",
    "search.chain.targets=2",
    "phases.train.epochs=1",
    "phases.confirm.max_models=1",
    "phases.confirm.baselines=[]",
]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def needs(plugin: str) -> None:
    if importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"{plugin} is an extra that is not installed")


@pytest.mark.slow
@pytest.mark.family
@pytest.mark.parametrize(
    ("plugin", "launcher"),
    [("hydra_joblib_launcher", "joblib"), ("hydra_submitit_launcher", "submitit_local")],
)
def test_each_run_of_a_sweep_is_a_whole_study(plugin: str, launcher: str, tmp_path: Path) -> None:
    needs(plugin)
    ended = run(
        tmp_path, "-m", f"hydra/launcher={launcher}", *TINY, "seed=1,2", "study.name=s${seed}"
    )
    assert ended.returncode == 0, ended.stderr
    for seed in (1, 2):
        assert (tmp_path / "runs" / f"s{seed}" / "summary.json").exists()


@pytest.mark.slow
def test_ray_runs_a_sweep_on_this_machine(tmp_path: Path) -> None:
    needs("hydra_ray_launcher")
    ended = run(tmp_path, "-m", "hydra/launcher=ray", *TINY, "seed=1,2", "study.name=s${seed}")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "runs" / "s1" / "summary.json").exists()


@pytest.mark.slow
def test_a_run_in_another_process_has_its_exit_code(tmp_path: Path) -> None:
    needs("hydra_joblib_launcher")
    ended = run(
        tmp_path, "-m", "hydra/launcher=joblib", *TINY, "study.n_trials=0,1", "study.name=s"
    )
    assert ended.returncode == 2
    assert "study.n_trials: Input should be greater than or equal to 1; got 0" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_scheduler_is_configured_on_the_command_line(tmp_path: Path) -> None:
    needs("hydra_submitit_launcher")
    words = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.timeout_min=600",
    ]
    ended = run(tmp_path, "--cfg", "hydra", "job=work", "job.name=1", *words)
    assert ended.returncode == 0, ended.stderr
    assert "SlurmLauncher" in ended.stdout
    assert "partition: gpu" in ended.stdout
