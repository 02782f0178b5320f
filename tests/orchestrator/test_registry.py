"""Finalists in a real registry: found by alias, loaded by MLflow alone, registered once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.errors import UserError
from orchestrator.__main__ import main
from orchestrator.load import load_pruned
from orchestrator.results.rows import ConfirmedRow, read_csv
from orchestrator.tracking.mlflow import MlflowTracker
from tests.orchestrator.test_records_job import TINY

STUDY = Path("runs/digits_small")


@pytest.mark.parametrize("name", ["a/b", "a:b", "", " "])
def test_a_name_that_the_registry_refuses_is_said_at_once(name: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.register must name a model"):
        MlflowTracker("sqlite:///mlflow.db", "pruning", name)


@pytest.mark.slow
@pytest.mark.family
def test_finalists_are_registered_once_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    command = [*TINY, "tracking.register=small"]
    # registered by a study that is complete, too
    assert main(TINY) == 0
    for _ in range(2):
        assert main(command) == 0
    uri = f"sqlite:///{Path('mlflow.db').resolve()}"
    client = mlflow.MlflowClient(uri)
    front = read_csv(STUDY / "front.csv", ConfirmedRow)
    best = max(front, key=lambda row: row.test_mean)
    version = client.get_model_version_by_alias("small", "best")
    assert version.description.startswith(f"Trial {best.trial} of digits_small: ")
    run = client.get_run(version.run_id)
    assert run.data.tags["trial_number"] == str(best.trial)
    small = [row for row in front if row.cost_ratio <= 0.5]
    aliases = client.get_registered_model("small").aliases
    assert ("under-50" in aliases) == bool(small)
    versions = client.search_model_versions("name = 'small'")
    assert len(versions) == len(set(aliases.values()))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    images = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    given = mlflow.pyfunc.load_model("models:/small@best").predict(images)
    with torch.no_grad():
        own = load_pruned(STUDY / "models" / str(best.trial))(torch.from_numpy(images))
    np.testing.assert_allclose(given, own.numpy(), rtol=1e-6)


@pytest.mark.slow
def test_an_exported_finalist_is_registered_as_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    command = [*TINY, "tracking.register=small"]
    assert main(command) == 0
    assert main([*command, "job=export", "job.formats=[onnx]", "select=max_quality"]) == 0
    assert main(command) == 0
    uri = f"sqlite:///{Path('mlflow.db').resolve()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    # an ONNX file needs nothing of this project
    shutil.rmtree("runs")
    loaded = mlflow.onnx.load_model("models:/small@best")
    assert [entry.name for entry in loaded.graph.output] == ["output"]
