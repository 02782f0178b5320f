"""A finished study from Python: its tables as data frames, its picture, its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import nearest
from orchestrator.jobs.outputs import BASELINES, FRONT, TRIALS, stored_view
from orchestrator.report.picture import png
from orchestrator.report.view import StudyView
from orchestrator.results import choose
from orchestrator.results.choose import Front
from orchestrator.results.rows import ConfirmedRow

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

_RULES = {rule.__name__: rule for rule in (choose.max_quality, choose.smallest, choose.knee)}
"""The rules of `select=`, by name."""


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows as it is."""

    content: bytes

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(self.content)

    def _repr_png_(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class Study:
    """A finished study, read from its folder.

    `front`, `baselines` and `trials` are data frames with the columns of the CSV files of these
    names. Rows of `front` and `baselines` are named as the folders in `models`, rows of `trials`
    are numbered.
    """

    folder: Path
    view: StudyView

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def quality(self) -> str:
        """The name of the quality metric."""
        return self.view.quality

    @property
    def summary(self) -> Mapping[str, Any]:
        """The content of summary.json."""
        return self.view.summary

    @cached_property
    def front(self) -> pd.DataFrame:
        return self._confirmed(FRONT, [row.name for row in self.view.rows.front])

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """The baselines' models, the dense model first."""
        rows = self.view.rows
        dense = [] if rows.dense is None else [rows.dense]
        return self._confirmed(BASELINES, [row.name for row in [*dense, *rows.baselines]])

    @cached_property
    def trials(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / TRIALS, index_col="number")

    def _confirmed(self, file: str, names: list[str]) -> pd.DataFrame:
        import pandas as pd

        frame = pd.read_csv(self.folder / file)
        frame.index = pd.Index(names, name="model")
        return frame

    def plot(self) -> Picture:
        """The front beside its baselines and trials, as in pareto.png."""
        view = self.view
        return Picture(png(view.rows, quality=view.quality, title=view.name, sign=view.sign))

    def load(self, model: str | int) -> nn.Module:
        """A confirmed model by its name: `study.load("3")`, `study.load("uniform-3")`.

        Errors: ConfigError for a name that is not there.
        """
        from orchestrator.load import load_pruned

        folder = self.folder / "models" / str(model)
        known = sorted([path.name for path in (self.folder / "models").iterdir()])
        if str(model) not in known:
            raise ConfigError(
                f"study '{self.name}' has the models {known}; got '{model}'"
                f"{nearest(str(model), known)}"
            )
        return load_pruned(folder)

    def _repr_html_(self) -> str:
        return str(self.front.to_html())


def open_study(folder: str | Path) -> Study:
    """The finished study in a folder, such as `runs/digits_small`.

    Errors: ConfigError for a folder without one, DataError for files that cannot be read.
    """
    return Study(Path(folder), stored_view(Path(folder)))


def select(study: Study, rule: str = "max_quality", **limits: float) -> ConfirmedRow:
    """The model that a rule takes: `select(study, "max_quality", max_flops_ratio=0.5)`.

    `rule` and `limits` are those of `job=export select=...`; the row's `name` is what `study.load`
    takes. Errors: ConfigError for a rule that does not exist, and where no model meets it.
    """
    if rule not in _RULES:
        raise ConfigError(
            f"rule must be one of {list(_RULES)}; got '{rule}'{nearest(rule, list(_RULES))}"
        )
    view = study.view
    if view.rows.dense is None or not view.rows.front:
        raise ConfigError(f"study '{study.name}' has no model on its front to select")
    return _RULES[rule](Front(view.rows.front, view.rows.dense, view.quality, view.sign), **limits)
