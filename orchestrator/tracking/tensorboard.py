"""A study in TensorBoard: one run per trial, with curves, settings and results."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_modules.errors import ConfigError
from orchestrator.tracking import ModelRecord, StudyEnd, StudyResults, TrialRecord

_DONE = ".recorded"
"""A file in a run's folder: what the run has is written whole."""


class TensorBoardTracker:
    """A `Tracker` that writes below `folder`: `<study>/<trial>`; look with `tensorboard --logdir`.

    Errors: ConfigError where the package is missing.
    """

    def __init__(self, folder: str = "tensorboard") -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                "tracking=tensorboard needs the package tensorboard; "
                "pip install 'pruning-orchestrator[tensorboard]'"
            )
        self.seconds = 0.0
        self._folder = Path(folder)
        self._study = self._folder

    def open_study(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        """The folder of a study begun anew under an old name has its `study_id` behind the name."""
        study = self._folder / name
        identity = tags.get("study_id", "")
        mark = study / ".study"
        if mark.is_file() and mark.read_text() != identity:
            study = self._folder / f"{name}-{identity}"
            mark = study / ".study"
        study.mkdir(parents=True, exist_ok=True)
        mark.write_text(identity)
        self._study = study

    def trial(self, record: TrialRecord) -> None:
        with self._writing(f"{record.number:03d}") as writer:
            if writer is None:
                return
            for point in record.curves:
                writer.add_scalar(point.name, point.value, point.step)
            settings = {**record.params, **record.tags, "state": record.state}
            writer.add_hparams(_simple(settings), _finite(record.metrics), run_name=".")

    def close_study(
        self, results: StudyResults, end: StudyEnd = "finished", at: float | None = None
    ) -> None:
        for model in results.models:
            self._model(model)
        with self._writing(f"results-{len(results.models)}") as writer:
            if writer is None or not results.models:
                return
            writer.add_text("front", _table(results.table))
            for name, value in results.metrics.items():
                writer.add_scalar(name, value)

    def _model(self, model: ModelRecord) -> None:
        """The test results of a model, as a run of their own: a trial's run is closed."""
        with self._writing(f"{model.key}-tested") as writer:
            if writer is not None:
                settings = {**model.params, **model.tags}
                writer.add_hparams(_simple(settings), _finite(model.metrics), run_name=".")

    @contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        """A writer for a run; None where the run was written before."""
        # torch and the package take a second to import
        from torch.utils.tensorboard import SummaryWriter

        begin = time.perf_counter()
        run = self._study / name
        if (run / _DONE).exists():
            yield None
            return
        for left in run.glob("events.*"):
            left.unlink()  # of a process that was killed while it wrote
        writer = SummaryWriter(str(run))
        try:
            yield writer
        finally:
            writer.close()
            self.seconds += time.perf_counter() - begin
        (run / _DONE).touch()


def _simple(values: Mapping[str, object]) -> dict[str, str | float | bool]:
    """Values that a table of settings takes."""
    simple: dict[str, str | float | bool] = {}
    for name, value in values.items():
        simple[name] = value if isinstance(value, str | int | float | bool) else str(value)
    return simple


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _table(columns: Mapping[str, Any]) -> str:
    """Columns as a Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for cells in zip(*columns.values(), strict=True):
        lines.append(f"| {' | '.join([_cell(cell) for cell in cells])} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
