"""A study in Weights & Biases: one run per trial, in a group that has the name of the study."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_modules.errors import ConfigError
from orchestrator.redact import redact_tree
from orchestrator.tracking import (
    ModelRecord,
    Point,
    StudyEnd,
    StudyResults,
    TrackerError,
    TrialRecord,
)

MODES = ("offline", "online")
_DONE = "recorded"
"""A folder beside W&B's own, with an empty file for each run that is written whole."""


class WandbTracker:
    """A `Tracker` in Weights & Biases; W&B writes to `wandb/` below `folder`.

    `offline` asks nothing of the network: `wandb sync` sends the runs when a person wants it.
    """

    def __init__(self, project: str = "pruning", mode: str = "offline", folder: str = ".") -> None:
        """Errors: ConfigError where the package is missing, and for a mode that there is not."""
        if mode not in MODES:
            raise ConfigError(f"tracking.mode must be one of {list(MODES)}; got '{mode}'")
        found = importlib.util.find_spec("wandb")
        # W&B's own folder of runs is a package without a file
        if found is None or found.origin is None:
            raise ConfigError(
                "tracking=wandb needs the package wandb; pip install 'pruning-orchestrator[wandb]'"
            )
        self.seconds = 0.0
        self._project = project
        self._mode = mode
        self._folder = Path(folder)
        self._study = ""
        self._identity = ""
        self._params: Mapping[str, object] = {}

    def open_study(self, name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        self._study = name
        self._identity = tags.get("study_id", "")
        self._params = {**params, **tags}
        self._folder.mkdir(parents=True, exist_ok=True)

    def trial(self, record: TrialRecord) -> None:
        title = record.title or f"{record.number:03d}"
        config = {**record.params, **record.tags, "state": record.state}
        with self._writing(str(record.number), title, "trial", config) as run:
            if run is None:
                return
            for step, values in _by_step(record.curves):
                run.log(values, step=step)
            run.summary.update(_finite(record.metrics))

    def close_study(
        self, results: StudyResults, end: StudyEnd = "finished", at: float | None = None
    ) -> None:
        """Adds a run for each model's test results, and one for the study, when it is finished."""
        for model in results.models:
            self._model(model)
        if not results.models:
            return
        config = {**self._params, "state": end}
        key = f"results-{len(results.models)}"
        with self._writing(key, self._study, "study", config) as run:
            if run is None:
                return
            import wandb

            rows = [list(row) for row in zip(*results.table.values(), strict=True)]
            run.log({"front": wandb.Table(columns=list(results.table), data=rows)})
            run.summary.update(_finite(results.metrics))
            artifact = wandb.Artifact(_safe(self._study), type="study")
            for path in results.artifacts:
                artifact.add_file(str(path))
            run.log_artifact(artifact)

    def _model(self, model: ModelRecord) -> None:
        """The test results of a model, as a run of their own: a trial's run is closed."""
        config = {**model.params, **model.tags}
        title = f"{model.title or model.key} tested"
        with self._writing(f"{model.key}-tested", title, "tested", config) as run:
            if run is not None:
                run.summary.update(_finite(model.metrics))

    @contextmanager
    def _writing(
        self, key: str, title: str, kind: str, config: Mapping[str, object]
    ) -> Iterator[Any]:
        """A run of W&B; None where it was written whole before. Errors: TrackerError."""
        begin = time.perf_counter()
        run_id = hashlib.sha256(f"{self._study}\n{self._identity}\n{key}".encode()).hexdigest()[:16]
        done = self._folder / "wandb" / _DONE / run_id
        if done.exists():
            yield None
            return
        self._forget_halves(run_id)
        with _refusing():
            run = self._begun(run_id, title, kind, config)
            try:
                yield run
            except BaseException:
                run.finish(exit_code=1)
                raise
            run.finish()
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
        self.seconds += time.perf_counter() - begin

    def _begun(self, run_id: str, title: str, kind: str, config: Mapping[str, object]) -> Any:
        # the package takes a second to import
        import wandb

        return wandb.init(
            project=self._project,
            dir=str(self._folder),
            id=run_id,
            name=title,
            group=self._study,
            job_type=kind,
            config=redact_tree(dict(config)),
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",  # a user's own run in this process goes on
            save_code=False,
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )

    def _forget_halves(self, run_id: str) -> None:
        """Deletes what a process that was killed left of a run."""
        for half in (self._folder / "wandb").glob(f"*run-*-{run_id}"):
            shutil.rmtree(half)


@contextmanager
def _refusing() -> Iterator[None]:
    """Errors of W&B's own become TrackerError, after which the record is sent again."""
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        reason = f"{type(error).__name__}: {error}"
        raise TrackerError(
            f"tracking=wandb must reach W&B; it says {reason}: log in with `wandb login`, or take "
            "tracking.mode=offline",
            reason=reason,
        ) from error


def _by_step(curves: Sequence[Point]) -> list[tuple[int, dict[str, float]]]:
    """The values of all curves by step, in order: W&B takes no step below the last."""
    steps: dict[int, dict[str, float]] = {}
    for point in curves:
        if math.isfinite(point.value):
            steps.setdefault(point.step, {})[point.name] = point.value
    return sorted(steps.items())


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _safe(name: str) -> str:
    """A name that W&B takes for an artifact."""
    return "".join([letter if letter.isalnum() or letter in "-_." else "_" for letter in name])
