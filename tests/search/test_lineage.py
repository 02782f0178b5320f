"""Who inherits from whom, on real small plans: properties that hold whatever the search
proposes.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lightning_modules.pruning.plan import Plan
from orchestrator.search.plans.finished import Finished, nearest_parent, read_plan
from orchestrator.search.plans.measurement import Measurement, Report
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import run_trials
from orchestrator.search.studies.orphans import remove_orphans
from orchestrator.search.studies.queue import enqueue_chain, reclaim_interrupted
from orchestrator.search.studies.study import Rules, Trials, open_study
from tests.search.problems import Bench, bench, silent

QUICK = [
    "phases.finetune.round_steps=2",
    "phases.finetune.recalibration_batches=1",
    "space.rounds=[1,1]",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the dense baselines of this module stand: each is trained once."""
    return tmp_path_factory.mktemp("home")


def some(seed: int) -> list[Finished]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(int(rng.integers(1, 30))):
        has = np.concatenate([rng.integers(1, 6, 3), rng.choice([0.25, 0.5, 1.0], 2)])
        cost = int(
            has[:3].prod() * has[3:].sum() * 4
        )  # grows with each of them, as effective MACs do
        found.append(
            Finished(number, cost, has, np.ones(1, dtype=bool), (), (), int(rng.integers(1, 4)))
        )
    return found


@pytest.mark.parametrize("seed", range(50))
def test_the_parent_contains_the_child_costs_most_as_little_as_any_and_was_trained_longest(
    seed: int,
) -> None:
    plans = some(seed)
    wanted = np.concatenate(
        [np.random.default_rng(seed + 1000).integers(1, 5, 3), [0.25, 0.5]]
    ).astype(float)
    parent = nearest_parent(plans, wanted)
    fits = [plan for plan in plans if (plan.has >= wanted).all() and (plan.has > wanted).any()]
    if parent is None:
        assert fits == []
        return
    assert parent in fits
    assert parent.macs == min(plan.macs for plan in fits)
    tied = [plan for plan in fits if plan.macs == parent.macs]
    assert parent.trained_rounds == max(plan.trained_rounds for plan in tied)
    assert parent.macs >= wanted[:3].prod() * wanted[3:].sum() * 4
    order = np.random.default_rng(seed).permutation(len(plans))
    assert nearest_parent([plans[i] for i in order], wanted) == parent


SLOW = ["hybrid", "activation_topk"]


@pytest.mark.parametrize(
    "method",
    ["l2", "weight_l1", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_a_child_has_only_what_its_parent_has_and_costs_no_more(
    home: Path, tmp_path: Path, method: str
) -> None:
    here = bench(home, tmp_path, f"method={method}", *QUICK)
    rng = np.random.default_rng(0)
    extra: dict[str, Any] = {"activation__level": 0.3} if method == "activation_topk" else {}
    for number in range(7):
        here.evaluator(here.propose(float(rng.uniform(0.15, 0.8)), **extra), number, silent)
    found = {plan.number: plan for plan in here.store.finished()}
    children = 0
    for number, plan in found.items():
        document = read_plan(here.store.folder / str(number))
        parent = document["plan"]["parent"]
        assert document["ancestors"] == [
            link["trial"] for link in document["lineage"]["links"][:-1]
        ]
        if parent is None:
            assert document["ancestors"] == []
            continue
        children += 1
        mother = found[parent]
        assert not (plan.keep & ~mother.keep).any()
        assert mother.macs >= plan.macs
        assert mother.trained_rounds < plan.trained_rounds
        models = [here.evaluator.inherited(plan).model, here.evaluator.inherited(mother).model]
        weights = [model.state_dict() for model in models]
        for name in plan.sparse:
            if weights[0][name].shape == weights[1][name].shape:
                assert not ((weights[0][name] != 0) & (weights[1][name] == 0)).any()
    assert children >= 2


def test_a_plan_that_another_process_saved_meanwhile_becomes_a_parent(
    home: Path, tmp_path: Path
) -> None:
    here = bench(home, tmp_path, *QUICK, "made_up={}")
    elsewhere = PlanStore(here.store.folder, here.facts)
    other = replace(here.evaluator, store=elsewhere)
    assert here.evaluator(here.propose(0.7), 0, silent).parent is None
    assert other(here.propose(0.5), 1, silent).parent == 0
    assert here.evaluator(here.propose(0.3), 2, silent).parent == 1
    shutil.rmtree(elsewhere.of(2))
    assert here.evaluator(here.propose(0.2), 3, silent).parent == 1
    # what is run again under its own number does not begin from what a killed run left there
    assert here.evaluator(here.propose(0.2), 3, silent).parent == 1


class Killed(BaseException):
    pass


def studied(
    here: Bench, n_trials: int, killed_at: int | None = None
) -> dict[int, tuple[int | None, bytes]]:
    """Parent and weights by trial of a study that is killed between saving a plan and telling
    Optuna.
    """
    settings = here.settings
    settings.study.folder.mkdir(parents=True, exist_ok=True)
    study = open_study(settings, ["maximize", "minimize"])
    enqueue_chain(study, here.space, [here.context], [0.6, 0.4, 0.2])
    leases = Leases(study, 60.0)
    reclaim_interrupted(study, leases)
    remove_orphans(study, here.store.folder)
    rules = Rules(here.facts.goals, 1.0, settings.stopping.build(), settings.sampler, settings.seed)

    def evaluate(plan: Plan, number: int, report: Report) -> Measurement:
        measured = here.evaluator(plan, number, report)
        if number == killed_at:
            raise Killed
        return measured

    with leases.leading():
        run_trials(
            Trials(
                study, here.space, here.context, evaluate, rules, leases, Exchange(study, Path())
            ),
            n_trials,
            lambda _: None,
        )
    return {
        int(path.name): (
            read_plan(path)["plan"]["parent"],
            (path / "weights.safetensors").read_bytes(),
        )
        for path in here.store.folder.iterdir()
    }


@pytest.mark.parametrize("number", [1, 3])
def test_a_study_killed_after_saving_ends_with_the_same_parents_and_weights(
    home: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = [*QUICK, "made_up={}", "stopping=never", "space=uniform", "space.high=0.8"]
    whole = studied(bench(home, tmp_path / "whole", *extra), 6)
    with monkeypatch.context() as patch:
        patch.setattr(
            "orchestrator.search.studies.loop.put_back", lambda *_: None
        )  # as when the process is gone
        patch.setattr("orchestrator.search.studies.leases._started", lambda pid: "before")
        with pytest.raises(Killed):
            studied(bench(home, tmp_path / "parts", *extra), 6, killed_at=number)
    left = bench(home, tmp_path / "parts", *extra)
    assert (left.store.folder / str(number)).exists()
    assert studied(left, 6) == whole
    assert sum(parent is not None for parent, _ in whole.values()) >= 3


def test_what_is_saved_can_be_traced_to_the_dense_model(home: Path, tmp_path: Path) -> None:
    here = bench(home, tmp_path, *QUICK, "made_up={}")
    for number, ratio in enumerate((0.6, 0.4, 0.2)):
        here.evaluator(here.propose(ratio), number, silent)
    documents = [read_plan(here.store.folder / str(number)) for number in range(3)]
    links = documents[2]["lineage"]["links"]
    assert [link["trial"] for link in links] == [0, 1, 2]
    assert [link["plan"] for link in links] == [document["plan"] for document in documents]
    for number, link in enumerate(links):
        weights = load_file(here.store.folder / str(number) / "weights.safetensors")
        assert link["units"]["conv1"] == weights["conv1.weight"].shape[0]
        assert link["trained_rounds"] == documents[number]["trained_rounds"]
    assert (
        documents[0]["lineage"]["dense"] == documents[2]["lineage"]["dense"] != links[0]["weights"]
    )
