"""What every sampler in conf/sampler must do."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.plan import Plan
from lightning_modules.recipe import Recipe
from orchestrator.search.goals import Direction, Goals
from orchestrator.search.plans.measurement import Evaluate, Measurement, Report
from orchestrator.search.samplers import (
    BruteForce,
    check_sampler,
    combinations,
    continuous,
    exhausted,
    hub,
    sampler,
    values_of,
)
from orchestrator.search.space import Allocation, Choices, PerGroup, SearchContext, Uniform
from orchestrator.search.stopping import Never
from orchestrator.search.studies.exchange import Exchange
from orchestrator.search.studies.leases import Leases
from orchestrator.search.studies.loop import run_trials
from orchestrator.search.studies.queue import enqueue_chain
from orchestrator.search.studies.study import Rules, Trials
from orchestrator.search.studies.trial import STATE, Study
from orchestrator.settings import MethodSettings
from orchestrator.settings.objectives import Bound
from tests.structures import small_resnet

SAMPLERS = sorted((Path(__file__).parents[2] / "conf" / "sampler").glob("*.yaml"))
# A plan of a Gaussian process takes a second; how a study is seeded and resumes is the same code
# for all.
FITTED = [
    pytest.param(path, marks=pytest.mark.slow) if path.stem == "gp" else path for path in SAMPLERS
]
CRITERION = {"_target_": "lightning_modules.pruning.criteria.Magnitude"}
METHOD = MethodSettings.model_validate({"name": "l2", "criterion": CRITERION})
GOALS = Goals(
    "accuracy", {"accuracy": 1.0, "loss": -1.0}, ("flops",), {"accuracy": Bound(least=0.8)}
)
TWO: list[Direction] = ["maximize", "minimize"]


@cache
def context() -> SearchContext:
    structure = small_resnet()
    macs = Cost(structure).macs
    ones = np.ones(structure.n_units)
    return SearchContext(structure, macs, macs(structure.sizes), "quantile", ones, method="l2")


OWN = '''
from optuna.samplers import RandomSampler

__all__ = ["Halves"]


class Halves(RandomSampler):
    """Draws from the seed, then halves what is continuous."""

    def __init__(self, search_space, seed=None, factor=0.5):
        super().__init__(seed)
        self.search_space, self.factor = search_space, factor
'''


def write_package(folder: Path, text: str = OWN) -> Path:
    package = folder / "samplers" / "halves"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(text)
    return folder


def slow_to_fit(target: str) -> bool:
    """Whether a plan takes a second: then few must do."""
    return target.endswith("GPSampler")


@pytest.fixture(params=SAMPLERS, ids=lambda path: path.stem)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    """The file as a study with seed 5 has it; a package of the hub from a local folder."""
    plain = yaml.safe_load(request.param.read_text())
    if plain.get("seed") == "${seed}":
        plain["seed"] = 5
    if "registry" in plain:
        plain |= {
            "package": "samplers/halves",
            "registry": str(write_package(tmp_path / "registry")),
        }
    if request.param.stem in ("tpe", "gp"):
        plain["n_startup_trials"] = 4 if slow_to_fit(plain["_target_"]) else 7
    if "population_size" in plain:
        plain["population_size"] = 4
    return Recipe.from_json(plain)


def space_for(recipe: Recipe) -> Choices:
    """Continuous, or in levels for what tries everything."""
    levels = 2 if recipe.target.endswith("BruteForce") else None
    space = Allocation(offset=0.3, levels=levels)
    return Choices(space, METHOD, {"l2": context()})


def pretend(plan: Plan, number: int, report: Report) -> Measurement:
    kept = plan.counts(small_resnet())
    macs = context().macs(kept)
    ratio = macs / context().dense_macs
    metrics = {"accuracy": 0.95 - 0.3 * (1 - ratio) ** 4, "loss": 0.1 + (1 - ratio) ** 2}
    report(1, ratio, metrics)
    return Measurement(
        "completed", None, {"flops": 2.0 * macs}, {"flops": ratio}, {}, rungs=((1, metrics),)
    )


def open_on(storage: optuna.storages.BaseStorage) -> Study:
    """The study on this storage, new or as it was left: nothing of the sampler is in memory."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        study_name="s", storage=storage, directions=GOALS.directions, load_if_exists=True
    )


def fresh() -> Study:
    return open_on(optuna.storages.InMemoryStorage())


def ran(study: Study, space: Choices, evaluate: Evaluate, rules: Rules, n_trials: int) -> None:
    leases = Leases(study, 60.0)
    with leases.leading():
        run_trials(
            Trials(study, space, context(), evaluate, rules, leases, Exchange(study, Path())),
            n_trials,
            lambda trial: None,
        )


def run(study: Study, recipe: Recipe, n_trials: int, seed: int = 5) -> list[dict[str, Any]]:
    space = space_for(recipe)
    enqueue_chain(study, space, [context()], [0.5, 0.2])
    rules = Rules(GOALS, 0.95, Never(), recipe, seed)
    ran(study, space, pretend, rules, n_trials)
    return [trial.params for trial in study.get_trials()]


@pytest.mark.parametrize("recipe", FITTED, ids=lambda path: path.stem, indirect=True)
def test_it_proposes_inside_the_distributions_and_every_trial_completes(recipe: Recipe) -> None:
    check_sampler(recipe, GOALS.directions)  # what the search would refuse has no contract to keep
    study, n_trials = fresh(), 6 if slow_to_fit(recipe.target) else 12
    found = run(study, recipe, n_trials)
    distributions = space_for(recipe).distributions(context())
    assert len(found) == n_trials
    for params in found:
        assert set(params) == set(distributions)
        for name, value in params.items():
            assert distributions[name]._contains(distributions[name].to_internal_repr(value)), (
                name,
                value,
            )
    assert {trial.user_attrs[STATE] for trial in study.get_trials()} <= {"completed", "infeasible"}
    assert (
        len({str(params) for params in found}) >= n_trials - 1
    )  # two proposals may meet, all alike they may not


@pytest.mark.parametrize("recipe", FITTED, ids=lambda path: path.stem, indirect=True)
def test_the_same_seed_gives_the_same_proposals_and_another_seed_others(recipe: Recipe) -> None:
    n_trials = 5 if slow_to_fit(recipe.target) else 10
    found = [run(fresh(), recipe, n_trials) for _ in range(2)]
    assert found[0] == found[1]
    reseeded = Recipe(
        recipe.target, {**recipe.arguments, **({"seed": 6} if "seed" in recipe.arguments else {})}
    )
    assert run(fresh(), reseeded, n_trials, seed=6)[2:] != found[0][2:]


@pytest.mark.parametrize("recipe", FITTED, ids=lambda path: path.stem, indirect=True)
def test_a_resumed_study_proposes_what_an_undisturbed_one_does(recipe: Recipe) -> None:
    whole = run(fresh(), recipe, 10)
    storage = optuna.storages.InMemoryStorage()
    run(open_on(storage), recipe, 3)
    run(open_on(storage), recipe, 9)
    assert run(open_on(storage), recipe, 10) == whole


def test_bounds_reach_the_sampler_as_constraints() -> None:
    study = fresh()
    run(study, Recipe("optuna.samplers.TPESampler", {"n_startup_trials": 4}), 15)
    for trial in study.get_trials():
        missed = 0.8 - trial.user_attrs["measured"]["metrics"]["accuracy"]
        assert trial.constraints == pytest.approx({"accuracy": missed})
        assert trial.user_attrs[STATE] == ("infeasible" if missed > 0 else "completed")
    assert {trial.user_attrs[STATE] for trial in study.get_trials()} == {"completed", "infeasible"}


def test_of_a_trial_that_was_stopped_the_sampler_learns_the_costs_alone() -> None:
    goals = Goals(
        "accuracy",
        {"accuracy": 1.0},
        ("flops",),
        {"accuracy": Bound(least=0.99), "flops": Bound(most=1.0)},
    )

    def stopped(plan: Plan, number: int, report: Report) -> Measurement:
        return replace(
            pretend(plan, number, report),
            state="stopped" if number else "rejected",
            reason="why",
        )

    study = optuna.create_study(directions=goals.directions)
    rules = Rules(goals, 0.95, Never(), Recipe("optuna.samplers.RandomSampler"), 0)
    ran(study, space_for(rules.sampler), stopped, rules, 2)
    for trial, state in zip(study.get_trials(), ("rejected", "stopped"), strict=True):
        assert (trial.user_attrs[STATE], trial.user_attrs["reason"]) == (state, "why")
        assert trial.constraints == {"flops": trial.user_attrs["measured"]["costs"]["flops"] - 1.0}


def test_samplers_of_one_objective_are_refused_with_what_optuna_says() -> None:
    with pytest.raises(
        ConfigError, match=r"must take 2 objectives; it says: .*multi-objective.*sampler=tpe"
    ):
        check_sampler(Recipe("optuna.samplers.CmaEsSampler"), TWO)


def test_what_is_no_sampler_or_would_end_the_study_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="sampler must be one of Optuna's"):
        check_sampler(Recipe("fractions.Fraction"), TWO)
    with pytest.raises(ConfigError, match="take sampler=brute_force"):
        check_sampler(Recipe("optuna.samplers.BruteForceSampler"), TWO)


# --- brute force
# -------------------------------------------------------------------------------------------------


def small(levels: int | None, **changes: Any) -> Choices:
    known = {"steps": (1, 1), "shapes": ("one_shot",), "rounds": (1, 2), **changes}
    return Choices(Uniform(levels=levels, **known), METHOD, {"l2": context()})


def exhaust(study: Study, space: Choices, n_trials: int = 1000) -> None:
    enqueue_chain(study, space, [context()], [0.5, 0.2, 0.15])
    rules = Rules(GOALS, 0.95, Never(), Recipe("orchestrator.search.samplers.BruteForce"), 0)
    ran(study, space, pretend, rules, n_trials)


def test_brute_force_tries_every_combination_once_and_the_search_ends() -> None:
    space, study = small(4), fresh()
    distributions = space.distributions(context())
    whole = combinations(distributions)
    assert whole == 4 * 2
    exhaust(study, space, 5)
    assert not exhausted(study, distributions)
    exhaust(study, space)
    found = [tuple(trial.params.values()) for trial in study.get_trials()]
    assert len(found) == len(set(found)) == whole
    assert exhausted(study, distributions)
    exhaust(study, space)
    assert len(study.get_trials()) == whole


def test_an_interrupted_combination_is_tried_again() -> None:
    space, study = small(2), fresh()

    def breaks(plan: Plan, number: int, report: Report) -> Measurement:
        if number == 1:
            raise KeyboardInterrupt
        return pretend(plan, number, report)

    rules = Rules(GOALS, 0.95, Never(), Recipe("orchestrator.search.samplers.BruteForce"), 0)
    enqueue_chain(study, space, [context()], [0.5, 0.2, 0.15])
    with pytest.raises(KeyboardInterrupt):
        ran(study, space, breaks, rules, 100)
    exhaust(study, space)
    ended = [
        str(trial.params)
        for trial in study.get_trials()
        if trial.user_attrs[STATE] != "interrupted"
    ]
    assert sorted(ended) == sorted(set(ended))
    assert len(ended) == 4


def test_continuous_dimensions_are_named() -> None:
    space = small(None)
    assert continuous(space.distributions(context())) == ["threshold"]
    assert combinations(space.distributions(context())) is None
    with pytest.raises(ConfigError, match=r"these are continuous: threshold; give space.levels=3"):
        BruteForce(space.distributions(context()))


@pytest.mark.parametrize("levels", [2, 3, 4, 7])
def test_levels_hold_both_ends_and_as_many_values_as_asked_for(levels: int) -> None:
    free = Choices(Allocation(), METHOD, {"l2": context()}).distributions(context())
    cut = Choices(Allocation(levels=levels), METHOD, {"l2": context()}).distributions(context())
    assert continuous(cut) == []
    for name in continuous(free):
        values = values_of(cut[name])
        assert len(values) == levels
        assert (values[0], values[-1]) == pytest.approx((free[name].low, free[name].high), rel=1e-4)
        gaps = np.diff(np.log(values) if free[name].log else values)
        assert gaps == pytest.approx(np.full(levels - 1, gaps[0]), rel=1e-3)


def test_rungs_of_the_chain_move_to_the_nearest_level() -> None:
    for space in (Allocation(levels=3), PerGroup(levels=3), Uniform(levels=3)):
        choices = Choices(space, METHOD, {"l2": context()})
        distributions = choices.distributions(context())
        for target in (0.7, 0.3, 0.1):
            for name, value in choices.chain(context(), target).items():
                assert any(
                    value == pytest.approx(other) for other in values_of(distributions[name])
                ), name


def test_one_level_is_no_choice() -> None:
    with pytest.raises(
        ConfigError, match=r"space.levels must be null \(continuous\) or at least 2; got 1"
    ):
        Uniform(levels=1)


# --- the hub
# -------------------------------------------------------------------------------------------------


def test_a_local_package_is_built_with_seed_space_and_arguments(tmp_path: Path) -> None:
    registry = str(write_package(tmp_path))
    space = space_for(Recipe("x")).distributions(context())
    given = {"package": "samplers/halves", "registry": registry, "arguments": {"factor": 0.25}}
    found = sampler(Recipe("orchestrator.search.samplers.hub", given), 7, space)
    assert type(found).__name__ == "Halves"
    assert found.factor == 0.25
    assert set(found.search_space) == set(space)


def test_what_is_wrong_with_a_package_is_said(tmp_path: Path) -> None:
    registry = write_package(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no .*samplers/half/__init__.py"):
        hub("samplers/half", 0, {}, registry=registry)
    with pytest.raises(ConfigError, match=r"which has \['Halves'\]; got 'Halve'; nearest: Halves"):
        hub("samplers/halves", 0, {}, name="Halve", registry=registry)
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'fctor'; it takes"):
        hub("samplers/halves", 0, {}, registry=registry, arguments={"fctor": 1})
    with pytest.raises(
        ConfigError, match=r"must be importable; ModuleNotFoundError: No module named 'no_such'"
    ):
        hub("samplers/halves", 0, {}, registry=write_package(tmp_path / "b", "import no_such"))


def test_without_the_extra_the_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optunahub", None)
    with pytest.raises(
        ConfigError,
        match=r"pip install 'pruning-orchestrator\[hub\]'; or .* sampler.registry=FOLDER",
    ):
        hub("samplers/auto_sampler", 0, {})
