"""Samplers by name: Optuna's for several objectives, OptunaHub's, and one that tries everything."""

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
    every trial.
    Errors: ConfigError for what is not a sampler, or does not take these distributions.
    """
    if recipe.target in _STOPS_ITSELF:
        raise ConfigError(
            f"{recipe.target} ends a study by itself, which only works inside `optimize`; take "
            "sampler=brute_force with space.levels"
        )
    accepted = set(inspect.signature(locate(recipe.target)).parameters)
    extra: dict[str, Any] = {}
    if "seed" in accepted - set(recipe.arguments):
        extra["seed"] = seed
    if "search_space" in accepted - set(recipe.arguments):
        extra["search_space"] = dict(distributions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        built = recipe.build(**extra)
    if not isinstance(built, BaseSampler):
        raise ConfigError(
            f"sampler must be one of Optuna's; {recipe.target} gives a {type(built).__name__}"
        )
    return built


def check_sampler(recipe: Recipe, directions: Sequence[Direction]) -> None:
    """Try the sampler on a small study.

    Errors: ConfigError with what the sampler says where it cannot do it.
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
            lines = str(error).splitlines() or [type(error).__name__]
            raise ConfigError(
                f"sampler {recipe.target} must take {len(directions)} objectives; it says: "
                f"{lines[0]} Take another one, such as sampler=tpe, nsga2, nsga3 or gp"
            ) from error


def continuous(distributions: Distributions) -> list[str]:
    """Names of the continuous dimensions."""
    names = []
    for name, distribution in distributions.items():
        if isinstance(distribution, FloatDistribution) and distribution.step is None:
            names.append(name)
    return names


def values_of(distribution: BaseDistribution) -> list[Any]:
    """All values of a discrete dimension, in order."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    assert distribution.step is not None
    low = distribution.low
    high = distribution.high
    count = round((high - low) / distribution.step) + 1
    return [min(low + index * distribution.step, high) for index in range(count)]


def combinations(distributions: Distributions) -> int | None:
    """How many plans there are; None where a dimension is continuous."""
    if continuous(distributions):
        return None
    count = 1
    for distribution in distributions.values():
        count *= len(values_of(distribution))
    return count


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
    """The place in the space of each trial with a value for every dimension.

    A place has the index of the value in each dimension; trials off the grid are left out. A
    waiting trial is counted at its future place if its parameters are enqueued.
    """
    values = {name: values_of(distribution) for name, distribution in distributions.items()}
    tried: set[tuple[int, ...]] = set()
    for trial in trials:
        params = {**enqueued_params(trial), **trial.params}
        indices = []
        for name, options in values.items():
            index = _index_of(options, params.get(name))
            if index is not None:
                indices.append(index)
        if len(indices) == len(values):
            tried.add(tuple(indices))
    return tried


def _index_of(values: list[Any], value: Any) -> int | None:
    """Index of a value among those of a dimension; None where it is none of them."""
    if not isinstance(value, float):
        return values.index(value) if value in values else None
    for index, other in enumerate(values):
        if abs(float(other) - value) < 1e-9:
            return index
    return None


class BruteForce(BaseSampler):
    """Every combination of a finite space, each once, in an order that the seed decides.

    Optuna's own ends the study from inside a trial, which asking and telling does not allow; with
    this one the loop ends it.
    """

    def __init__(self, search_space: Distributions, seed: int = 0) -> None:
        names = continuous(search_space)
        if names:
            raise ConfigError(
                "sampler=brute_force needs discrete dimensions; these are continuous: "
                f"{', '.join(names)}; give space.levels=3 (values per dimension), or fix them "
                "(least = most)"
            )
        self._space = dict(search_space)
        self._seed = seed

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
        tried = {_index(indices, shape) for indices in tried_places(others, search_space)}
        draw = random.Random(self._seed)
        nth = draw.randrange(max(1, whole - len(tried)))
        chosen = _nth_untried(nth, sorted(tried))
        if chosen >= whole:
            # everything is tried: only another worker's trial can be left to wait for
            chosen = draw.randrange(whole)
        sampled = {}
        indices = _place_of(chosen, shape)
        for name, options, index in zip(search_space, values, indices, strict=True):
            sampled[name] = options[index]
        return sampled

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        # asked only of a dimension that the space does not have: never in a study
        return values_of(param_distribution)[0]


def _index(indices: Sequence[int], shape: Sequence[int]) -> int:
    """The number of a combination, the last dimension counting fastest.

    Python's integers have no largest one.
    """
    number = 0
    for digit, size in zip(indices, shape, strict=True):
        number = number * size + digit
    return number


def _place_of(number: int, shape: Sequence[int]) -> list[int]:
    """The combination of a number; the inverse of `_index`."""
    digits = []
    for size in reversed(shape):
        number, digit = divmod(number, size)
        digits.append(digit)
    return digits[::-1]


def _nth_untried(nth: int, tried: Sequence[int]) -> int:
    """The `nth` number, counted from 0, that is not in the ascending `tried`."""
    for number in tried:
        if number > nth:
            break
        nth += 1
    return nth


def hub(
    package: str,
    seed: int,
    search_space: Distributions,
    name: str | None = None,
    registry: Path | str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> BaseSampler:
    """A sampler of OptunaHub.

    `package` is as in `samplers/auto_sampler`; `registry` is a local folder of packages. `name` is
    the class, where a package has several. Loading runs the package's code.
    Errors: ConfigError.
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
    accepted = inspect.signature(classes[name]).parameters
    given: dict[str, Any] = {}
    if "seed" in accepted:
        given["seed"] = seed
    if "search_space" in accepted:
        given["search_space"] = dict(search_space)
    given |= arguments or {}
    try:
        return classes[name](**given)
    except TypeError as error:
        raise ConfigError(
            f"sampler.arguments must be those of {module.__name__}.{name}; {error}; it takes "
            f"{list(accepted)}"
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
    """A package from OptunaHub's registry, or from what was downloaded before."""
    try:
        import optunahub
    except ImportError as error:
        raise ConfigError(
            "sampler=hub needs optunahub: pip install 'pruning-orchestrator[hub]'; or name a local "
            "folder of packages: sampler.registry=FOLDER"
        ) from error
    loaded = sys.modules.get(f"optunahub_registry.package.{package.replace('/', '.')}")
    if loaded is not None:
        return loaded
    try:
        module: ModuleType = optunahub.load_module(package)
    except Exception as error:
        # git, the network, or the package's own imports failed
        raise ConfigError(
            f"sampler.package '{package}' cannot be loaded; {type(error).__name__}: {error}"
        ) from error
    return module
