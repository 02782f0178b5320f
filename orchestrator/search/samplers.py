"""Samplers by name: Optuna's that take several objectives, OptunaHub's, and one that tries
everything.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import random
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import Recipe, digest, locate, nearest
from lightning_modules.tasks.metrics import Direction
from orchestrator.search.studies.optuna_inside import enqueued_params

Distributions = Mapping[str, BaseDistribution]
_STOPS_ITSELF = ("optuna.samplers.GridSampler", "optuna.samplers.BruteForceSampler")


def sampler(recipe: Recipe, seed: int, distributions: Distributions) -> BaseSampler:
    """Any sampler by its dotted path, given `seed` and `search_space` where it takes them.

    A seed of its own in the configuration stays: a low-discrepancy sequence must be the same one in
    every trial. Errors: ConfigError for what is not a sampler, or does not take these
    distributions.
    """
    if recipe.target in _STOPS_ITSELF:
        raise ConfigError(
            f"{recipe.target} ends a study by itself, which only works inside `optimize`; take "
            "sampler=brute_force with space.levels"
        )
    accepts = inspect.signature(locate(recipe.target)).parameters
    extra = {"seed": seed, "search_space": dict(distributions)}
    given = {
        name: value
        for name, value in extra.items()
        if name in accepts and name not in recipe.arguments
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        built = recipe.build(**given)
    if not isinstance(built, BaseSampler):
        raise ConfigError(
            f"sampler must be one of Optuna's; {recipe.target} gives a {type(built).__name__}"
        )
    return built


def check_sampler(recipe: Recipe, directions: Sequence[Direction]) -> None:
    """Try it on a small study. Errors: ConfigError with what the sampler says where it cannot do
    it.
    """
    space: Distributions = {
        "a": FloatDistribution(0.0, 1.0, step=0.25),
        "b": IntDistribution(1, 4),
        "c": CategoricalDistribution(("x", "y")),
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=list(directions), sampler=optuna.samplers.RandomSampler(0)
    )
    for number in range(2):
        built = sampler(recipe, number, space)
        try:
            study.sampler = built
            study.tell(study.ask(dict(space)), [0.5 + number] * len(directions))
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"sampler {recipe.target} must take {len(directions)} objectives; it says: {first} "
                "Take another one, such as sampler=tpe, nsga2, nsga3 or gp"
            ) from error


def continuous(distributions: Distributions) -> list[str]:
    """Names of the dimensions with values without number."""
    return [
        name
        for name, d in distributions.items()
        if isinstance(d, FloatDistribution) and d.step is None
    ]


def values_of(distribution: BaseDistribution) -> list[Any]:
    """All values of a discrete dimension, in order."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    assert distribution.step is not None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [
        min(distribution.low + place * distribution.step, distribution.high)
        for place in range(count)
    ]


def combinations(distributions: Distributions) -> int | None:
    """How many plans there are; None where a dimension is continuous."""
    if continuous(distributions):
        return None
    return math.prod(len(values_of(distribution)) for distribution in distributions.values())


def exhausted(study: optuna.Study, distributions: Distributions) -> bool:
    """Whether every combination of a finite space has been tried to its end."""
    whole = combinations(distributions)
    trials = study.get_trials(deepcopy=False)
    if whole is None or len(trials) < whole:
        return False
    tried = [trial for trial in trials if trial.state.is_finished()]
    return len(tried_places(tried, distributions)) == whole


def tried_places(
    trials: Sequence[FrozenTrial], distributions: Distributions
) -> set[tuple[int, ...]]:
    """Where in the space each trial with a value for every dimension lies; what lies off the grid
    is left out.

    A trial that waits lies where it will be, if its parameters are given.
    """
    values = {name: values_of(distribution) for name, distribution in distributions.items()}
    found = set()
    for trial in trials:
        params = {**enqueued_params(trial), **trial.params}
        place = [_place(values[name], params.get(name)) for name in values]
        if None not in place:
            found.add(tuple(place))
    return found  # type: ignore[return-value]


def _place(values: list[Any], value: Any) -> int | None:
    if isinstance(value, float):
        near = [i for i, other in enumerate(values) if abs(float(other) - value) < 1e-9]
        return near[0] if near else None
    return values.index(value) if value in values else None


class BruteForce(BaseSampler):
    """Every combination of a finite space, each once, in an order that the seed decides.

    Optuna's own ends the study from inside a trial, which asking and telling does not allow; here
    the loop ends it.
    """

    def __init__(self, search_space: Distributions, seed: int = 0) -> None:
        if names := continuous(search_space):
            raise ConfigError(
                "sampler=brute_force needs discrete dimensions; these are continuous: "
                f"{', '.join(names)}; give "
                "space.levels=3 (values per dimension), or fix them (least = most)"
            )
        self._space, self._seed = dict(search_space), seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        values = [values_of(distribution) for distribution in search_space.values()]
        shape = [len(options) for options in values]
        whole = math.prod(shape)
        others = [
            other for other in study.get_trials(deepcopy=False) if other.number != trial.number
        ]
        tried = {_index(place, shape) for place in tried_places(others, search_space)}
        draw = random.Random(self._seed)
        chosen = _nth_untried(draw.randrange(max(1, whole - len(tried))), sorted(tried))
        if chosen >= whole:  # all are: only another worker's trial can be left to wait for
            chosen = draw.randrange(whole)
        place = _place_of(chosen, shape)
        return {
            name: options[i] for name, options, i in zip(search_space, values, place, strict=True)
        }

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return values_of(param_distribution)[
            0
        ]  # of a dimension the space does not have: never in a study


def _index(place: Sequence[int], shape: Sequence[int]) -> int:
    """The number of a combination, the last dimension counting fastest; Python's integers have no
    largest one.
    """
    number = 0
    for digit, size in zip(place, shape, strict=True):
        number = number * size + digit
    return number


def _place_of(number: int, shape: Sequence[int]) -> list[int]:
    """The combination of a number: the other way round."""
    digits = []
    for size in reversed(shape):
        number, digit = divmod(number, size)
        digits.append(digit)
    return digits[::-1]


def _nth_untried(place: int, tried: Sequence[int]) -> int:
    """The `place`-th number from 0 that is not among `tried`, which rise."""
    for number in tried:
        if number > place:
            break
        place += 1
    return place


def hub(
    package: str,
    seed: int,
    search_space: Distributions,
    name: str | None = None,
    registry: Path | str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> BaseSampler:
    """A sampler of OptunaHub, `package` as in `samplers/auto_sampler`; `registry` is a local folder
    of packages.

    `name` is the class, where a package has several. Loading runs the package's code. Errors:
    ConfigError.
    """
    module = _downloaded(package) if registry is None else _local(package, Path(registry))
    classes = _samplers_in(module)
    if name is None and len(classes) == 1:
        (name,) = classes
    if name not in classes:
        raise ConfigError(
            f"sampler.name must be a sampler of {package}, which has {sorted(classes)}; got "
            f"{name!r}{nearest(name or '', sorted(classes))}"
        )
    accepts = inspect.signature(classes[name]).parameters
    extra = {"seed": seed, "search_space": dict(search_space)}
    given = {key: value for key, value in extra.items() if key in accepts}
    try:
        return classes[name](**given | dict(arguments or {}))
    except TypeError as error:
        raise ConfigError(
            f"sampler.arguments must be those of {module.__name__}.{name}; {error}; it takes "
            f"{list(accepts)}"
        ) from error


def _samplers_in(module: ModuleType) -> dict[str, type[BaseSampler]]:
    """Samplers that a package offers, by name; Optuna's own, which it imports, are none of them."""
    offered = getattr(module, "__all__", list(vars(module)))
    classes: dict[str, type[BaseSampler]] = {}
    for name, value in vars(module).items():
        if not isinstance(value, type) or not issubclass(value, BaseSampler):
            continue
        if name in offered and not value.__module__.startswith("optuna."):
            classes[name] = value
    return classes


def _local(package: str, registry: Path) -> ModuleType:
    """A package of a folder that is laid out as the registry's own `package` folder."""
    path = registry / package / "__init__.py"
    if not path.is_file():
        raise ConfigError(f"sampler.registry must hold sampler.package; there is no {path}")
    name = f"sampler_package_{digest(str(path.resolve()))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path} must be importable; {type(error).__name__}: {error}") from error
    return module


def _downloaded(package: str) -> ModuleType:
    """From OptunaHub's registry, or from what it has downloaded before."""
    try:
        import optunahub
    except ImportError as error:
        raise ConfigError(
            "sampler=hub needs optunahub: pip install 'pruning-orchestrator[hub]'; or name a local "
            "folder of packages: "
            "sampler.registry=FOLDER"
        ) from error
    if (
        before := sys.modules.get(f"optunahub_registry.package.{package.replace('/', '.')}")
    ) is not None:
        return before
    try:
        found: ModuleType = optunahub.load_module(package)
    except Exception as error:  # git, the network, the package's own imports
        raise ConfigError(
            f"sampler.package '{package}' cannot be loaded; {type(error).__name__}: {error}"
        ) from error
    return found
