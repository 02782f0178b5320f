"""Configurations out of `conf/`, composed by Hydra.

They are mended where Hydra lays one class's keys over another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import nearest
from orchestrator.sources import Layered, Source
from orchestrator.study_name import study_name

if TYPE_CHECKING:
    from orchestrator.settings import Settings

CONFIG_NAME = "config"
ASKED = "what was asked for"


def conf_folder() -> Path:
    """The configuration tree: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    if installed.is_dir():
        return installed
    return package.parent / "conf"


def load_settings(config: Mapping[str, Any], searchpath: Sequence[str | Path] = ()) -> Settings:
    """Settings of a whole mapping, or of one that says what differs from the defaults of `conf/`.

    A group is taken by name ({"method": "taylor", "experiment": "digits_small"}), a value by its
    path or its dotted key ({"study": {"n_trials": 4}}, {"method.scope": "global"}). `searchpath`
    are folders with groups of your own.
    Errors: ConfigError.
    """
    # imported here, as --help does not need it
    from orchestrator import settings

    if _is_whole(config, settings.Settings):
        return settings.load(config)
    # Hydra does not put this back, and the caller may use Hydra, too
    version_before = VersionBase.instance().version_base
    folders = [f"'{Path(folder).resolve().as_uri()}'" for folder in searchpath]
    words = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
    require_folders(words)
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
            return settings.load(_merged(config, words))
    except MissingConfigException as error:
        raise ConfigError(unknown_choice(error)) from error
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"the configuration cannot be composed: {one_line(error)}") from error
    finally:
        VersionBase.instance().version_base = version_before


def _is_whole(config: Mapping[str, Any], model: Any) -> bool:
    """Whether every part is there as a mapping, so that no default is missing."""
    if "experiment" in config:
        return False
    for name, field in model.model_fields.items():
        if field.is_required() and (name not in config or isinstance(config[name], str)):
            return False
    return True


def _merged(config: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """The defaults with the groups that `config` chooses, and its own values over them."""
    loader = GlobalHydra.instance().config_loader()
    _, repository = loader._parse_overrides_and_create_caching_repo(CONFIG_NAME, list(words))  # type: ignore[attr-defined]
    chosen = list(words)
    own = dict[str, Any]()
    for key, value in config.items():
        if _chooses(key, value, repository):
            prefix = "+" if key == "experiment" else ""
            chosen.append(f"{prefix}{key}={_choice(value)}")
        else:
            _put(own, key.split("."), value)
    composed = hydra.compose(CONFIG_NAME, chosen)
    OmegaConf.set_struct(composed, False)
    merged = OmegaConf.merge(composed, OmegaConf.create(own, flags={"allow_objects": True}))
    assert isinstance(merged, DictConfig)
    return settled(merged, chosen, own)


def _chooses(key: str, value: Any, repository: Any) -> bool:
    return isinstance(value, str | list) and bool(repository.group_exists(key))


def _choice(value: str | list[str]) -> str:
    return value if isinstance(value, str) else f"[{','.join(value)}]"


def settled(
    config: DictConfig,
    words: Sequence[str],
    own: Mapping[str, Any] | None = None,
    name: str = CONFIG_NAME,
) -> dict[str, Any]:
    """Plain data of what Hydra composed, mended, with `own` laid over it.

    Hydra composed it from the file `name` and the overrides `words`. Keys of a class that another
    `_target_` has replaced are left out, a study without a name of its own is called after what was
    asked for, and `method.among` has methods in the place of their names.
    Errors: ConfigError.
    """
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    layered = Layered(_sources(loader, name, words, parsed, own or {}))
    content: Any = OmegaConf.to_container(config, resolve=False)
    for path in list(layered.foreign(content)):
        _delete(content, path)
    asked = [*_asked(parsed), *_flat(own or {})]
    study = content.get("study")
    named = isinstance(study, dict) and isinstance(study.get("name"), str)
    if named and layered.giver("study", "name") != ASKED:
        study["name"] = study_name(_base(study["name"], layered, asked), asked)
    resolved = _resolved(OmegaConf.create(content))
    _fetch_methods(resolved, _searchpath_words(words))
    return resolved


def _searchpath_words(words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith("hydra.searchpath=")]


def require_folders(words: Iterable[str]) -> None:
    """Checks the folders of `hydra.searchpath`: Hydra would only warn.

    Errors: ConfigError for one that does not exist.
    """
    for override in OverridesParser.create().parse_overrides(_searchpath_words(words)):
        value = override.value()
        for folder in value if isinstance(value, list) else [value]:
            parts = urlsplit(str(folder))
            if parts.scheme in ("", "file") and not Path(unquote(parts.path)).is_dir():
                raise ConfigError(
                    f"hydra.searchpath must name folders that are there; got '{folder}'; give it "
                    "whole, as in 'hydra.searchpath=[file:///home/me/conf]'"
                )


def _sources(
    loader: ConfigLoader,
    name: str,
    words: Sequence[str],
    parsed: Sequence[Override],
    own: Mapping[str, Any],
) -> list[Source]:
    """Sources in the order in which Hydra merges them; what was asked for is the last one."""
    defaults = loader.compute_defaults_list(name, list(words), RunMode.RUN).defaults
    _, repository = loader._parse_overrides_and_create_caching_repo(name, list(words))  # type: ignore[attr-defined]
    sources = []
    for default in defaults:
        if default.config_path and not default.config_path.startswith("hydra/"):
            loaded = loader._load_single_config(default, repository)  # type: ignore[attr-defined]
            content: Any = OmegaConf.to_container(loaded.config, resolve=False)
            sources.append(Source(default.config_path, content, default.parent or ""))
    asked: dict[str, Any] = {}
    for override in parsed:
        key = override.key_or_group
        chooses = repository.group_exists(key) and not isinstance(override.value(), dict)
        if not override.is_delete() and not chooses:
            _put(asked, key.split("."), override.value())
    for key, value in own.items():
        _put(asked, [key], value)
    sources.append(Source(ASKED, asked))
    return sources


def _asked(parsed: Iterable[Override]) -> list[tuple[str, str]]:
    """(key, value) of each override, as text."""
    asked = []
    for override in parsed:
        value = "no" if override.is_delete() else _text(override.value())
        asked.append((override.key_or_group, value))
    return asked


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    if isinstance(value, dict):
        pairs = [f"{key} {_text(item)}" for key, item in value.items()]
        return ",".join(pairs)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _base(name: str, layered: Layered, asked: Iterable[tuple[str, str]]) -> str:
    """The experiment's own name where its file gives the study none."""
    experiments = [value for key, value in asked if key == "experiment"]
    named_by_file = layered.giver("study", "name") != CONFIG_NAME
    if named_by_file or not experiments:
        return name
    return "-".join(experiments).replace(",", "-").replace("/", "-")


def _flat(own: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of every leaf."""
    leaves = []
    for key, value in own.items():
        if isinstance(value, Mapping):
            leaves += _flat(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", _text(value)))
    return leaves


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value at a path of the tree; two mappings are merged."""
    for name in path[:-1]:
        below = tree.get(name)
        tree[name] = below if isinstance(below, dict) else {}
        tree = tree[name]
    last = path[-1]
    before = tree.get(last)
    if isinstance(value, Mapping) and isinstance(before, dict):
        tree[last] = {**before, **value}
    else:
        tree[last] = value


def _delete(content: dict[Any, Any], path: Sequence[str]) -> None:
    for name in path[:-1]:
        content = content[name]
    del content[path[-1]]


def _resolved(config: DictConfig) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(
            f"{error.full_key} must have a value; give it as {error.full_key}=..."
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {first_line(error)}; see --cfg job") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _fetch_methods(container: dict[str, Any], searchpath: Sequence[str]) -> None:
    """Put the methods that `method.among` names in the place of their names.

    Errors: ConfigError for unknown ones.
    """
    method = container.get("method")
    names = method.get("among") if isinstance(method, dict) else None
    if not isinstance(method, dict) or not isinstance(names, list):
        return
    methods = []
    for name in names:
        methods.append(_method(name, searchpath) if isinstance(name, str) else name)
    method["among"] = methods


def _method(name: str, searchpath: Sequence[str]) -> Any:
    """The method of this name. Errors: ConfigError where there is none."""
    try:
        composed = hydra.compose(CONFIG_NAME, [f"method={name}", *searchpath])
    except MissingConfigException as error:
        known = sorted(error.options or ())
        raise ConfigError(
            f"method.among names '{name}'{nearest(name, known)}; available: {', '.join(known)}"
        ) from error
    return OmegaConf.to_container(composed.method, resolve=True)


def unknown_choice(error: MissingConfigException) -> str:
    """Rule, value and remedy for a name that a group does not have."""
    group, _, name = str(error.missing_cfg_file).strip("/").rpartition("/")
    names = sorted(error.options or ())
    return f"{group} has no '{name}'{nearest(name, names)}; available: {', '.join(names)}"


def one_line(error: Exception) -> str:
    """All lines of an error's message, on one line."""
    return "; ".join(_lines(error))


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return _lines(error)[0]


def _lines(error: Exception) -> list[str]:
    """The lines of an error's message; its class where it has none."""
    stripped = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in stripped if line]
    return lines or [type(error).__name__]
