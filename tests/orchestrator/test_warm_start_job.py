"""A study that begins with the finished plans of another one, through the whole command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv
from orchestrator.search.plans.finished import read_plan

SMALL = [
    "made_up={}",
    "+experiment=digits_small",
    "model.width=8",
    "phases.train.epochs=3",
    "phases.finetune.round_steps=6",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=8",
    "phases.confirm.baselines=[]",
    "search.chain.targets=3",
    "threads=1",
    "tracking=none",
]
FIRST = [*SMALL, "study.name=first", "study.n_trials=5"]
SECOND = [*SMALL, "study.name=second", "search.warm_start=first"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first study has been run."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FIRST) == 0
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(home, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def trials(name: str) -> list[TrialRow]:
    return read_csv(f"runs/{name}/trials.csv", TrialRow)


def summary(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"runs/{name}/summary.json").read_text())
    return found


def stored(name: str) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(f"runs/{name}/study.journal"))
    return optuna.load_study(study_name=name, storage=storage).trials


def completed(name: str) -> list[TrialRow]:
    return [row for row in trials(name) if row.state == "completed"]


@pytest.mark.slow
@pytest.mark.family
def test_plans_are_trials_parents_and_on_the_front_and_the_chain_is_not_run_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = completed("first")
    assert main([*SECOND, "study.n_trials=3", "stopping=never"]) == 0
    rows = trials("second")
    warm = [row for row in rows if row.kind == "warm"]
    assert [row.number for row in warm] == list(range(len(first)))
    assert [(row.quality, row.costs["flops"], row.costs["params"]) for row in warm] == [
        (r.quality, r.costs["flops"], r.costs["params"]) for r in first
    ]
    assert [row.reason for row in warm] == [f"trial {row.number} of study first" for row in first]
    assert {row.kind for row in rows[len(warm) :]} == {"search"}  # no rung of the chain is left
    assert len(rows) - len(warm) == 3 == summary("second")["trials"]
    assert summary("second")["taken_over"] == len(warm)
    told = stored("second")
    assert all(
        trial.state == TrialState.COMPLETE and len(trial.params) > 4 for trial in told[: len(warm)]
    )
    own = [row for row in rows if row.kind == "search" and row.state == "completed"]
    assert any(row.parent is not None and row.parent < len(warm) for row in own)
    front = read_csv("runs/second/front.csv", ConfirmedRow)
    assert {row.trial for row in front} & {row.number for row in warm}
    # complete, and shown at once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.jobs.search.prepare", None)
        assert main([*SECOND, "study.n_trials=3", "stopping=never"]) == 0
    # nothing needs the first study any more
    shutil.rmtree("runs/first")
    for row in front:
        if row.origin != "front":
            continue
        again = [
            *SECOND,
            "stopping=never",
            "job=replay",
            f"job.model=runs/second/models/{row.trial}",
        ]
        assert main(again) == 0
    descendant = next(
        row.number for row in own if row.parent is not None and row.parent < len(warm)
    )
    links = read_plan(Path(f"runs/second/trials/{descendant}"))["lineage"]["links"]
    assert [link["trial"] for link in links][-1] == descendant
    shutil.move(f"runs/second/trials/{descendant}", "kept")
    shutil.rmtree("runs/second")
    assert main([*SECOND, "stopping=never", "job=replay", "job.model=kept"]) == 0
    assert (
        main(
            [
                *SECOND[:-1],
                "search.warm_start=null",
                "stopping=never",
                "job=replay",
                "job.model=kept",
            ]
        )
        == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [["method=l1"], ["space=per_group"], ["space.offset=0.2"], ["objectives=quality_flops_params"]],
)
def test_methods_spaces_and_objectives_may_differ(other: list[str]) -> None:
    first = completed("first")
    assert main([*SECOND, *other, "study.n_trials=2", "stopping=never"]) == 0
    told = stored("second")[: len(first)]
    rows = trials("second")
    assert [row.state for row in rows[: len(first)]] == ["completed"] * len(first)
    assert len(rows) == len(first) + 2
    expressible = [trial.state == TrialState.COMPLETE for trial in told]
    if other[0] in ("method=l1", "space=per_group"):
        assert not any(expressible)
        assert all(trial.state == TrialState.FAIL and not trial.params for trial in told)
    elif other[0] == "space.offset=0.2":
        assert expressible[:3] == [True] * 3  # the chain has no offsets
    else:
        assert all(expressible)
        assert all(len(trial.values) == 3 for trial in told)
    assert all(
        (Path("runs/second/trials") / str(row.number) / "plan.json").exists()
        for row in rows[: len(first)]
    )


@pytest.mark.slow
def test_plans_outside_a_bound_are_parents_and_no_more() -> None:
    first = completed("first")
    bound = sorted(row.ratios["flops"] for row in first)[1] + 0.001
    assert (
        main(
            [
                *SECOND,
                f"objectives.bounds={{flops_ratio: {{most: {bound}}}}}",
                "study.n_trials=3",
                "stopping=never",
            ]
        )
        == 0
    )
    rows = trials("second")
    states = {row.number: row.state for row in rows if row.kind == "warm"}
    assert list(states.values()).count("parent") == len(first) - 2
    assert all(
        "is over objectives.bounds.flops_ratio.most" in rows[number].reason
        for number, s in states.items()
        if s == "parent"
    )
    front = {row.trial for row in read_csv("runs/second/front.csv", ConfirmedRow)}
    assert not front & {number for number, state in states.items() if state == "parent"}
    parents = {row.parent for row in rows if row.kind != "warm"}
    assert parents & set(states)


@pytest.mark.slow
def test_rungs_that_are_shorter_or_elsewhere_are_run() -> None:
    longer = ["search.chain.targets=4", "study.n_trials=4", "stopping=never"]
    assert main([*SECOND, *longer]) == 0
    kinds = [row.kind for row in trials("second") if row.kind != "warm"]
    assert kinds.count("chain") == 3  # the first is there; the last would be trained for longer


@pytest.mark.slow
def test_a_kill_at_any_moment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*SECOND, "study.n_trials=3", "stopping=never"]

    def weights(name: str) -> dict[str, bytes]:
        return {
            p.parent.name: p.read_bytes()
            for p in Path(f"runs/{name}/trials").glob("*/weights.safetensors")
        }

    assert main(command) == 0
    whole = weights("second")
    shutil.rmtree("runs/second")
    for target, at in (
        ("orchestrator.search.studies.warm_start._trial", 2),
        ("orchestrator.search.studies.warm_start._copy", 1),
        ("orchestrator.search.trials.evaluate.run_plan", 1),
    ):
        module, _, name = target.rpartition(".")
        original = getattr(__import__(module, fromlist=[name]), name)
        calls = iter(range(100))

        def dies(
            *args: Any, _original: Any = original, _calls: Any = calls, _at: int = at, **more: Any
        ) -> Any:
            if next(_calls) == _at:
                raise KeyboardInterrupt
            return _original(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(target, dies)
            assert main(command) == 130
    assert main(command) == 0
    assert weights("second") == whole


@pytest.mark.slow
def test_a_budget_does_not_count_what_was_taken_over() -> None:
    assert (
        main([*SECOND, "study.budget=4epochs", "search.chain.most_epochs=1", "stopping=never"]) == 0
    )
    own = [row for row in trials("second") if row.kind != "warm"]
    assert len(own) >= 3
    assert all(row.seconds == 0.0 for row in trials("second") if row.kind == "warm")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.warm_start=firts"], "finished plans in runs; got 'firts'; there: first, other"),
        (["search.warm_start=second"], "another study with finished plans in runs; got 'second'"),
        (["seed=1"], "needs the same model, data and training; seed was 0, now 1"),
        (
            ["model.width=4"],
            "model.width was 8, now 4. Give the values it had, or search.warm_start=null",
        ),
        (["phases.finetune.round_steps=7"], "phases.finetune.round_steps was 6, now 7"),
        (["phases.train.epochs=4"], "phases.train.epochs was 3, now 4"),
        (["trainer.precision=bf16-mixed"], "trainer was None, now {'precision': 'bf16-mixed'"),
        (["model=vgg_small", "~model.width"], "model"),
    ],
)
def test_another_model_data_training_or_study_is_refused(
    overrides: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree("runs/first", "runs/other")
    monkeypatch.setattr(
        "orchestrator.jobs.search.prepare", None
    )  # told before anything is paid for
    capsys.readouterr()
    assert main([*SECOND, *overrides]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_other_dense_weights_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path("runs/first/trials").glob("*/plan.json"):
        document = json.loads(path.read_text())
        document["lineage"]["dense"] = "0" * 64
        path.write_text(json.dumps(document))
    assert main([*SECOND, "study.n_trials=2"]) == 2
    assert (
        "search.warm_start=first begins with other dense weights: 000000000000 there"
        in capsys.readouterr().err
    )


def test_trials_in_another_storage_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/first/study.journal").unlink()
    assert main([*SECOND, "study.n_trials=2"]) == 2
    assert "give study.storage the value it had" in capsys.readouterr().err
