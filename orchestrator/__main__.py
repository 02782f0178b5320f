"""The command line: `python -m orchestrator +experiment=NAME key=value ...`, one job from one composed configuration.

Exit codes: 0 done; 1 a bug, with its traceback; 2 something the user can mend, said in one message; 130 after
Ctrl-C and 143 after SIGTERM, with how to go on.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_modules.errors import ConfigError, UserError
from lightning_modules.recipe import nearest
from orchestrator.files import write_atomic
from orchestrator.redact import redact, redact_tree
from orchestrator.stopped import Stopped, stoppable

CONFIG_NAME = "config"


def main(arguments: Sequence[str] | None = None, conf: Path | None = None) -> int:
    """Exit code of one command line; `conf` is the folder with config.yaml, by default the one that came with this."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    folder = conf_folder() if conf is None else conf
    # Hydra's own report of an error is a traceback or names no remedy; with this it raises to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    argv, sys.argv = sys.argv, ["orchestrator", *words]
    try:
        with TemporaryDirectory() as place, stoppable():
            codes = Codes(Path(place))
            hydra.main(version_base="1.3", config_path=str(folder), config_name=CONFIG_NAME)(_job(codes))()
            return codes.worst()
    except Stopped as stopped:
        return _say_how_to_go_on(words, stopped.signum)
    except KeyboardInterrupt:
        return _say_how_to_go_on(words, signal.SIGINT)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        _say(_composition_message(error, words, folder))
        return 2
    finally:
        sys.argv = argv


def conf_folder() -> Path:
    """The configuration tree: inside the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "conf"
    return installed if installed.is_dir() else here.parent / "conf"


def run(config: DictConfig) -> None:
    """Hands the job one validated value; everything below knows no Hydra. Errors: UserError."""
    from orchestrator import settings as schema

    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must have a value; give it as {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_first_line(error)}; see --cfg job") from error
    if not isinstance(container, dict):
        raise ConfigError(f"the configuration must be a mapping; it is {container!r}; see --cfg job")
    _fetch_methods(container)
    settings = schema.load({str(key): value for key, value in container.items()})
    settings.job.build(settings)


def _fetch_methods(container: dict[Any, Any]) -> None:
    """Put the methods that `method.among` names in the place of their names. Errors: ConfigError for unknown ones."""
    method = container.get("method")
    names = method.get("among") if isinstance(method, dict) else None
    if not isinstance(method, dict) or not isinstance(names, list):
        return
    searchpath = [word for word in HydraConfig.get().overrides.hydra if word.startswith("hydra.searchpath=")]
    found = []
    for name in names:
        if not isinstance(name, str):
            found.append(name)
            continue
        try:
            one = hydra.compose(CONFIG_NAME, [f"method={name}", *searchpath])
        except MissingConfigException as error:
            known = sorted(error.options or ())
            message = f"method.among names '{name}'{nearest(name, known)}; available: {', '.join(known)}"
            raise ConfigError(message) from error
        found.append(OmegaConf.to_container(one.method, resolve=True))
    method["among"] = found


@dataclass(frozen=True)
class Codes:
    """Exit codes of all runs, as files: a launcher may begin runs in processes that share nothing else with this one.

    Of runs on other machines the scheduler knows how they ended.
    """

    folder: Path

    def add(self, code: int) -> None:
        if self.folder.is_dir():
            write_atomic(self.folder / uuid.uuid4().hex, str(code))

    def worst(self) -> int:
        """A bug says more about the whole than a mistake in one of several runs."""
        found = [int(path.read_text()) for path in self.folder.iterdir()]
        return 1 if 1 in found else max(found, default=0)


def _job(codes: Codes) -> Callable[[DictConfig], None]:
    """What Hydra runs, once or in turn; each run adds its exit code.

    No error goes on to Hydra, which would print the overrides, with their secrets, and leave out the other runs.
    """

    def job(config: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _announce_run()
            _hide_secrets_of_multirun()
        try:
            run(config)
        except UserError as error:
            _say(str(error))
            codes.add(2)
        except Exception as error:
            _say("".join(traceback.format_exception(error)).rstrip())
            codes.add(1)

    return job


def _announce_run() -> None:
    config = HydraConfig.get()
    overrides = [re.sub(r"\\(.)", r"\1", word) for word in config.overrides.task]
    _say(f"run {config.job.num}: {shlex.join(overrides)}")


def _hide_secrets_of_multirun() -> None:
    """Hydra writes multirun.yaml as it was given, before the first job of a multirun."""
    path = Path(HydraConfig.get().sweep.dir, "multirun.yaml")
    if path.is_file():
        content = redact_tree(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
        write_atomic(path, OmegaConf.to_yaml(content))


def _say_how_to_go_on(words: Sequence[str], signum: int) -> int:
    command = shlex.join(["python", "-m", "orchestrator", *words])
    _say(f"stopped; what was finished is kept; to go on, give the same command again: {command}")
    return 128 + signum


def _say(message: str) -> None:
    print(redact(message), file=sys.stderr, flush=True)


def _composition_message(error: Exception, words: Sequence[str], folder: Path) -> str:
    """Rule, value and remedy of what went wrong before there was a configuration."""
    if isinstance(error, OverrideParseException):
        return f"an override is key=value; '{error.override}' cannot be read: {_first_line(error)}; quote the value"
    if isinstance(error, YAMLError):
        return f"a configuration file must be YAML; one cannot be read: {_one_line(error)}; mend it there"
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).strip("/").rpartition("/")
        names = sorted(error.options)
        return f"{group} has no '{name}'{nearest(name, names)}; available: {', '.join(names)}"
    overrides = [word for word in words if not word.startswith("-") and ("=" in word or word.startswith(("+", "~")))]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        for override in parsed:
            if f"'{override.key_or_group}'" in str(error):
                return _override_message(error, override, loader, [other for other in parsed if other != override])
    return _one_line(error)


def _override_message(error: Exception, wrong: Override, loader: ConfigLoader, others: Sequence[Override]) -> str:
    name = wrong.key_or_group
    options = loader.get_group_options(name, ObjectType.CONFIG)
    if options and not wrong.is_add():
        return f"{name} must be chosen with a plus sign: +{name}={wrong.value()}; available: {', '.join(options)}"
    # Hydra settles the groups before the values, so these compose even when other values are wrong as well.
    choices = [
        str(other.input_line)
        for other in others
        if other.key_or_group == "hydra.searchpath" or loader.get_group_options(other.key_or_group)
    ]
    tree = OmegaConf.to_container(hydra.compose(CONFIG_NAME, choices), resolve=False)
    keys = _dotted(tree) if isinstance(tree, Mapping) else []
    if name in keys:
        return f"{wrong.input_line} does not fit: {_first_line(error)}"
    from orchestrator.settings.deleted import instead  # --help must not pay for the schema

    if replacement := instead(name):
        return f"{name} is not a setting any more: {replacement}"
    known = sorted({*keys, *loader.list_groups("")})
    return f"the configuration has no '{name}'{nearest(name, known)}; --cfg job shows all keys, --help all groups"


def _dotted(tree: Mapping[Any, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += _dotted(value, f"{prefix}{key}.")
    return found


def _one_line(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
