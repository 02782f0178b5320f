"""Methods through the main job: what the front, the tables and MLflow say of them, and what is
exported.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import orchestrator
from lightning_modules.data import digits
from lightning_modules.errors import DataError
from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv
from tests.faults.harm import change, flip

SMALL = [
    "model.width=8",
    "phases.train.epochs=3",
    "phases.finetune.round_steps=6",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=3",
    "phases.confirm.baselines=[uniform]",
    "search.chain.targets=3",
    "threads=1",
    "study.n_trials=5",
    "study.name=digits_small",
]


def accuracy(model: torch.nn.Module) -> float:
    hits = [(model(x).argmax(1) == y).float() for x, y, _ in digits().test_dataloader()]
    return float(torch.cat(hits).mean())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_search_over_methods_says_in_mlflow_and_in_the_front_which_one_won() -> None:
    from mlflow import MlflowClient

    assert (
        main(
            [
                "+experiment=digits_small",
                "method=search",
                *SMALL,
                "made_up={}",
                "method.among=[l1,fpgm,random]",
            ]
        )
        == 0
    )
    trials = read_csv("runs/digits_small/trials.csv", TrialRow)
    assert [row.method for row in trials[:3]] == ["l1", "fpgm", "random"]
    front = read_csv("runs/digits_small/front.csv", ConfirmedRow)
    assert all(row.method == trials[row.trial].method != "" for row in front)
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("pruning").experiment_id])
    tags = {
        int(r.data.tags["trial_number"]): r.data.tags["method"]
        for r in runs
        if "trial_number" in r.data.tags
    }
    assert tags == {row.number: row.method for row in trials}


@pytest.mark.slow
@pytest.mark.family
def test_single_weights_are_compared_and_exported_by_effective_flops() -> None:
    assert main(["+experiment=digits_small", "method=weight_lamp", *SMALL, "tracking=none"]) == 0
    front = read_csv("runs/digits_small/front.csv", ConfirmedRow)
    baselines = {
        (row.origin, row.trial): row
        for row in read_csv("runs/digits_small/baselines.csv", ConfirmedRow)
    }
    for row in front:
        assert row.axis == "effective_flops"
        assert row.ratios["flops"] == row.ratios["params"] == 1.0
        assert row.ratios["effective_flops"] < 0.8
        model = orchestrator.load_pruned(row.path)
        zeros = sum(int((p == 0).sum()) for p in model.parameters()) / sum(
            p.numel() for p in model.parameters()
        )
        assert row.sparsity == pytest.approx(zeros)
        assert accuracy(model) > 0.5
        if ("uniform", row.trial) in baselines:
            assert (
                baselines["uniform", row.trial].costs["effective_flops"]
                <= row.costs["effective_flops"]
            )


@pytest.mark.slow
@pytest.mark.family
def test_activations_stay_pruned_in_the_exported_model() -> None:
    levels = "method.activation.levels=[0.2,0.3]"
    assert (
        main(
            ["+experiment=digits_small", "method=activation_topk", *SMALL, levels, "tracking=none"]
        )
        == 0
    )
    row = read_csv("runs/digits_small/front.csv", ConfirmedRow)[0]
    model = orchestrator.load_pruned(row.path)
    seen: list[float] = []
    model.fc.register_forward_hook(
        lambda module, inputs, output: seen.append(float((inputs[0] != 0).float().mean()))
    )
    accuracy(model)
    assert max(seen) <= 0.35
    # a ladder prunes no activations, so it is matched by units: by effective FLOPs it would lose
    # three times as many
    matched = [
        b for b in read_csv("runs/digits_small/baselines.csv", ConfirmedRow) if b.trial is not None
    ]
    front = {found.trial: found for found in read_csv("runs/digits_small/front.csv", ConfirmedRow)}
    assert matched
    assert all(
        0.7 * front[b.trial].costs["flops"] <= b.costs["flops"] <= front[b.trial].costs["flops"]
        for b in matched
    )
    assert row.ratios["effective_flops"] < row.ratios["flops"]


@pytest.mark.slow
@pytest.mark.family
def test_a_quantised_front_is_exported_as_it_was_measured() -> None:
    pytest.importorskip("onnxruntime")
    few = [
        "study.n_trials=3",
        "phases.confirm.max_models=2",
        "phases.confirm.baselines=[]",
    ]  # an export takes seconds
    assert main(["+experiment=digits_small", "method=int8", *SMALL, *few, "tracking=none"]) == 0
    for row in read_csv("runs/digits_small/front.csv", ConfirmedRow):
        small, whole = orchestrator.load_int8(row.path), orchestrator.load_pruned(row.path)
        assert abs(accuracy(small) - accuracy(whole)) < 0.03
        assert row.costs["size_mb"] == (Path(row.path) / "model.int8.onnx").stat().st_size / 1e6
    folder = Path(row.path)
    flip(folder / "model.int8.onnx")
    with pytest.raises(
        DataError, match=r"model.int8.onnx was changed or damaged: its sha256 is \w{12}..., not"
    ):
        orchestrator.load_int8(folder)
    (folder / "model.int8.onnx").write_bytes(b"not a model")
    change(folder / "plan.json", lambda document: document["exports"].clear())  # as older plans are
    with pytest.raises(DataError, match=r"must have the sha256 of model.int8.onnx; it has none"):
        orchestrator.load_int8(folder)


@pytest.mark.slow
def test_the_dense_baseline_on_disk_is_never_written_to() -> None:
    small = [*SMALL, "phases.confirm.baselines=[]", "tracking=none"]
    assert main(["+experiment=digits_small", "method=soft_filter", *small]) == 0
    (path,) = Path("baselines").glob("*/weights.safetensors")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert main(["+experiment=digits_small", "method=surgery", *small, "study.name=other"]) == 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_methods_to_choose_among_may_be_the_user_s_own_and_unknown_ones_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["method=search", "method.among=[l1,tailor]"]) == 2
    assert "'tailor'; nearest: taylor" in capsys.readouterr().err
    Path("mine/method").mkdir(parents=True)
    Path("mine/method/own.yaml").write_text(
        "name: own\ncriterion: {_target_: lightning_modules.pruning.criteria.Random}\n"
    )
    own = [
        "+experiment=digits_small",
        f"hydra.searchpath=[file://{Path.cwd() / 'mine'}]",
        "method=search",
        "method.among=[l1,own]",
    ]
    assert main([*own, "job=inspect", "threads=1", "model.width=4"]) == 0
    assert main(["method=search", "method.among=[l1,weight_l1]"]) == 2
    assert "prune the same thing" in capsys.readouterr().err
