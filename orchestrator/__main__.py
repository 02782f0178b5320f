"""The command line: one job from one composed configuration.

A command is `python -m orchestrator +experiment=NAME key=value ...`. Exit codes: 0 done; 1 a bug,
with its traceback; 2 something the user can mend, said in one message; 130 after Ctrl-C and 143
after SIGTERM, with how to go on.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_modules.errors import UserError
from lightning_modules.recipe import TARGET, nearest
from orchestrator.compose import (
    CONFIG_NAME,
    conf_folder,
    first_line,
    one_line,
    require_folders,
    settled,
    unknown_choice,
)
from orchestrator.files import write_atomic
from orchestrator.redact import redact, redact_tree, redact_words
from orchestrator.shell import COMPLETION, asks_for_completion, asks_for_help, fitted_help
from orchestrator.stopped import Stopped, stoppable

SEARCH = "orchestrator.jobs.checked.search"
"""The job whose studies are compared at the end of a multirun."""
SPINS = "300"
"""Turns that a thread of OpenMP waits busily.

Its own 300,000 keep a core from the thread that it waits for.
"""


def main(arguments: Sequence[str] | None = None, conf: Path | None = None) -> int:
    """Exit code of one command line.

    `conf` is the folder with config.yaml, by default the one that came with this program.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if "--version" in words:
        print(f"pruning-orchestrator {version('pruning-orchestrator')}, Hydra {hydra.__version__}")
        return 0
    if asks_for_completion(words):
        print(COMPLETION, end="")
        return 0
    folder = conf_folder() if conf is None else conf
    _share_cores()
    # Hydra's own report of an error is a traceback or names no remedy; with this it raises to us
    os.environ["HYDRA_FULL_ERROR"] = "1"
    argv = sys.argv
    sys.argv = ["orchestrator", *words]
    try:
        require_folders(words)
        with TemporaryDirectory() as scratch, stoppable():
            codes = Codes(Path(scratch))
            door = hydra.main(version_base="1.3", config_path=str(folder), config_name=CONFIG_NAME)
            with _help_fits(words):
                door(_job(codes))()
            _compare_sweep(codes)
            return codes.worst()
    except Stopped as stopped:
        return _say_how_to_go_on(words, stopped.signum)
    except KeyboardInterrupt:
        return _say_how_to_go_on(words, signal.SIGINT)
    except UserError as error:
        _say(str(error))
        return 2
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        _say(_composition_message(error, words, folder))
        return 2
    finally:
        sys.argv = argv


@contextmanager
def _help_fits(words: list[str]) -> Iterator[None]:
    """Hydra writes every list of choices in one line."""
    if not asks_for_help(words):
        yield
        return
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:
        # Hydra leaves by SystemExit
        if text.getvalue():
            print(fitted_help(text.getvalue()), end="")


def _share_cores() -> None:
    """Threads of OpenMP that wait for one another give way soon, for a busy neighbour's sake.

    It is set before torch is imported, which reads it once; processes that this one begins inherit
    it. A policy of the user's own stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def run_job(config: DictConfig, codes: Codes) -> None:
    """Hands the job one validated value; everything below knows no Hydra.

    Errors: UserError.
    """
    from orchestrator import settings as schema

    asked = HydraConfig.get().overrides
    name = HydraConfig.get().job.config_name or CONFIG_NAME
    plain = settled(config, [*asked.hydra, *asked.task], name=name)
    settings = schema.load(plain, _command())
    settings.job.build(settings)
    if settings.job.target == SEARCH:
        codes.add_study(settings.study.folder)


def _command() -> str:
    """The command line of this run alone, without secrets."""
    config = HydraConfig.get()
    words = sys.argv[1:]
    if config.mode == RunMode.MULTIRUN:
        # one run of several: its own overrides, and a configuration of the user's own
        words = _overrides(config)
        if config.job.config_name not in (None, CONFIG_NAME):
            words = [f"--config-name={config.job.config_name}", *words]
    return shlex.join(["python", "-m", "orchestrator", *redact_words(words)])


def _overrides(config: HydraConf) -> list[str]:
    """Those of one run of a multirun, as a user gives them."""
    return [re.sub(r"\\(.)", r"\1", word) for word in config.overrides.task]


@dataclass(frozen=True)
class Codes:
    """Exit codes of all runs, and the folders of the studies that ended, as files.

    A launcher may begin runs in processes that share nothing else with this one. Of runs on other
    machines the scheduler knows how they ended.
    """

    folder: Path

    def add(self, code: int) -> None:
        self._add("code", str(code))

    def add_study(self, folder: Path) -> None:
        self._add("study", str(folder.resolve()))

    def _add(self, kind: str, text: str) -> None:
        if self.folder.is_dir():
            write_atomic(self.folder / f"{kind}-{uuid.uuid4().hex}", text)

    def studies(self) -> list[Path]:
        return sorted([Path(path.read_text()) for path in self.folder.glob("study-*")])

    def worst(self) -> int:
        """A bug says more about the whole than a mistake in one of several runs."""
        codes = [int(path.read_text()) for path in self.folder.glob("code-*")]
        if 1 in codes:
            return 1
        return max(codes, default=0)


def _job(codes: Codes) -> Callable[[DictConfig], None]:
    """The function that Hydra runs, once or in turn; each run adds its exit code.

    No error goes on to Hydra, which would print the overrides, with their secrets, and leave out
    the other runs.
    """

    def job(config: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            if not config.get("quiet"):
                _announce_run()
            _hide_secrets_of_multirun()
        try:
            run_job(config, codes)
        except UserError as error:
            _say(str(error))
            codes.add(2)
        except Exception as error:
            _say("".join(traceback.format_exception(error)).rstrip())
            codes.add(1)

    return job


def _compare_sweep(codes: Codes) -> None:
    """The studies of a multirun side by side, where two or more have ended."""
    folders = codes.studies()
    if len(folders) < 2:
        return
    from orchestrator.jobs.compared import compare_and_record

    try:
        compare_and_record(folders)
    except UserError as error:
        # the studies have ended: what cannot be compared is told, and is no failure
        _say(f"the studies are not compared: {error}")


def _announce_run() -> None:
    config = HydraConfig.get()
    _say(f"run {config.job.num}: {shlex.join(_overrides(config))}")


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
    """Rule, value and remedy of an error before there was a configuration."""
    if isinstance(error, OverrideParseException):
        return (
            f"an override is key=value; '{error.override}' cannot be read: "
            f"{first_line(error)}; quote the value"
        )
    if isinstance(error, YAMLError):
        return (
            f"a configuration file must be YAML; one cannot be read: {one_line(error)}; mend "
            "it there"
        )
    if (
        isinstance(error, MissingConfigException)
        and error.options is not None
        and error.missing_cfg_file
    ):
        return unknown_choice(error)

    overrides = [word for word in words if _is_override(word)]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        for override in parsed:
            if f"'{override.key_or_group}'" in str(error):
                others = [other for other in parsed if other != override]
                return _override_message(error, override, loader, others)
    return one_line(error)


def _is_override(word: str) -> bool:
    if word.startswith("-"):
        return False
    return "=" in word or word.startswith(("+", "~"))


def _override_message(
    error: Exception, wrong: Override, loader: ConfigLoader, others: Sequence[Override]
) -> str:
    name = wrong.key_or_group
    options = loader.get_group_options(name, ObjectType.CONFIG)
    if options and not wrong.is_add():
        return (
            f"{name} must be chosen with a plus sign: +{name}={wrong.value()}; available: "
            f"{', '.join(options)}"
        )
    # Hydra settles the groups before the values, so these compose even when other values are wrong
    # as well
    choices = []
    for other in others:
        key = other.key_or_group
        if other.is_sweep_override() and loader.get_group_options(key):
            # a multirun: its first run says as much as the others
            choices.append(f"{key}={next(other.sweep_string_iterator())}")
        elif key == "hydra.searchpath" or loader.get_group_options(key):
            choices.append(str(other.input_line))
    tree = OmegaConf.to_container(hydra.compose(CONFIG_NAME, choices), resolve=False)
    keys = _dotted(tree) if isinstance(tree, Mapping) else []
    if name in keys:
        return f"{wrong.input_line} does not fit: {first_line(error)}"
    # --help must not pay for the schema
    from orchestrator.settings.deleted import instead

    replacement = instead(name)
    if replacement:
        return f"{name} is not a setting any more: {replacement}"
    known = sorted({*keys, *loader.list_groups("")})
    own = ""
    if _is_of_a_recipe(name, keys):
        own = f"; to give a class of your own what it takes: +{wrong.input_line}"
    return (
        f"the configuration has no '{name}'{nearest(name, known)}{own}; --cfg job shows all "
        "keys, --help all groups"
    )


def _is_of_a_recipe(name: str, keys: Sequence[str]) -> bool:
    return f"{name.rpartition('.')[0]}.{TARGET}" in keys


def _dotted(tree: Mapping[Any, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += _dotted(value, f"{prefix}{key}.")
    return keys


if __name__ == "__main__":
    sys.exit(main())
