"""Choose a model of a finished study, and write it in every format with a model card."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import LightningModule
from torch import nn

from lightning_modules.data.contract import ready_data
from lightning_modules.errors import ConfigError, DataError
from lightning_modules.phases.fit import evaluate
from lightning_modules.recipe import nearest
from lightning_modules.tasks.contract import build_task, inputs_from
from lightning_modules.tasks.whole import Whole, pruned_part
from orchestrator.export.card import Card
from orchestrator.export.flat import input_names
from orchestrator.export.formats import EXPORT_FORMATS, Format
from orchestrator.export.onnx import check_opset
from orchestrator.export.parity import Comparison, Exported
from orchestrator.files import write_atomic
from orchestrator.jobs.check import CPU
from orchestrator.jobs.deployed import shortfall, with_latencies
from orchestrator.jobs.outputs import BASELINES, CONFIG, FRONT
from orchestrator.jobs.view import read_known, tested_in
from orchestrator.load import load_pruned
from orchestrator.progress import Progress
from orchestrator.redact import redact_tree
from orchestrator.report.tables import export_table, show, summary_table
from orchestrator.results.choose import Front
from orchestrator.results.quantities import mean_and_spread, percent
from orchestrator.results.rows import ConfirmedRow, read_csv
from orchestrator.results.who_pays import changes_of
from orchestrator.search.goals import goals_of
from orchestrator.search.lab.dense import unchecked_model
from orchestrator.search.plans.finished import WEIGHTS, read_plan, save_document
from orchestrator.search.plans.lineage import differences
from orchestrator.seeds import Stream, seed_of
from orchestrator.settings import Settings

BEST = "best"
"""The folder of the chosen model, below that of its study."""
CARD = "MODEL_CARD.md"
EXPORTS = "exports.json"
COMPARED_BATCHES = 4
"""Validation batches on which outputs are compared."""


@dataclass(frozen=True)
class Chosen:
    """The model that was chosen, the folder with its files, and how each format compares."""

    row: ConfirmedRow
    folder: Path
    exports: tuple[Exported, ...]


def export(settings: Settings, formats: Sequence[str], opset: int | None = None) -> Chosen:
    """Write the model that `select` takes to `runs/<study>/best/` in these formats.

    `opset` is the version of ONNX's operators; None: PyTorch's own choice.
    A format that fails for this model is reported with its reason, and the others still come.
    Errors: UserError for a study that is not finished, for one of another network, data or task,
    for a rule that no model meets, and for formats and opsets that do not exist.
    """
    forms = _formats(formats, opset)
    front = finished_front(settings)
    _require_same_study(settings)
    row = settings.select.build(front=front)
    with Progress(quiet=settings.quiet) as progress:
        progress.phase("export", f"{row.words} as {', '.join(formats)}")
        chosen = _Exporter(settings, front, row).write(forms, progress)
    _show(settings, front, chosen)
    return chosen


def _formats(names: Sequence[str], opset: int | None) -> list[Format]:
    """The formats of these names. Errors: ConfigError for one that does not exist."""
    check_opset(opset)
    known = list(EXPORT_FORMATS)
    forms = []
    for name in names:
        if name not in known:
            raise ConfigError(
                f"job.formats must be some of {known}; got '{name}'{nearest(name, known)}"
            )
        forms.append(EXPORT_FORMATS[name].with_options({"opset": opset}))
    return forms


def finished_front(settings: Settings) -> Front:
    """The confirmed models of the study. Errors: ConfigError for a study that is not finished."""
    folder = settings.study.folder
    for name in (FRONT, BASELINES, CONFIG):
        if not (folder / name).is_file():
            raise ConfigError(
                f"job=export takes a model of a finished study; {folder} has no {name}: give "
                "study.name=..., or search first with the same command without job=export"
            )
    rows = read_csv(folder / FRONT, ConfirmedRow)
    dense = read_csv(folder / BASELINES, ConfirmedRow)
    if not rows or not dense:
        raise ConfigError(
            f"job=export takes a model of the front; that of {folder} is empty: no model was "
            "confirmed within objectives.bounds"
        )
    goals = goals_of(settings)
    return Front(rows, dense[0], goals.quality, goals.sign)


def _require_same_study(settings: Settings) -> None:
    """Errors: ConfigError where the study had another network, data or task."""
    path = settings.study.folder / CONFIG
    stored = yaml.safe_load(path.read_text())
    mine = json.loads(json.dumps(redact_tree(settings.plain())))
    parts = ("model", "data", "task")
    changes = differences(
        {part: stored.get(part) for part in parts}, {part: mine[part] for part in parts}
    )
    if changes:
        raise ConfigError(
            f"job=export needs the network, data and task of the study; {'; '.join(changes)}: give "
            "the same +experiment and options"
        )


@dataclass(frozen=True)
class _Exporter:
    """One model of a study on its way out."""

    settings: Settings
    front: Front
    row: ConfirmedRow

    def write(self, formats: Sequence[Format], progress: Progress) -> Chosen:
        """The folder appears when it is whole, in the place of an earlier one."""
        study = self.settings.study.folder
        source = study / "models" / self.row.name
        part = study / f".{BEST}.{uuid.uuid4().hex}"
        part.mkdir(parents=True)
        try:
            exports = self._files(source, part, formats, progress)
            target = study / BEST
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Chosen(self.row, target, exports)

    def _files(
        self, source: Path, folder: Path, formats: Sequence[Format], progress: Progress
    ) -> tuple[Exported, ...]:
        document = read_plan(source)
        model = load_pruned(source, whole=True)
        if isinstance(model, LightningModule):
            model = Whole(model, document.get("network"))
        comparison = self._comparison(model)
        shutil.copyfile(source / WEIGHTS, folder / WEIGHTS)
        exports: list[Exported] = []
        for form in formats:
            progress.tick(f"{form.name}: exported, loaded and compared")
            exports.append(comparison.export(form, folder))
        progress.tick("latency, beside the dense model")
        dense = pruned_part(unchecked_model(self.settings))
        example = comparison.samples[0].first()
        exports = with_latencies(exports, folder, dense, example, self.settings.objectives)
        save_document(folder, document)
        card = Card(
            study=self.settings.study.name,
            network=self.settings.model_name(),
            folder=str(self.settings.study.folder / BEST),
            rule=_rule(self.settings),
            front=self.front,
            row=self.row,
            document=document,
            exports=exports,
            inputs=input_names(comparison.model, comparison.samples[0]),
            **self._who_pays(),
        )
        write_atomic(folder / CARD, card.text())
        record = [asdict(entry) for entry in exports]
        write_atomic(folder / EXPORTS, json.dumps(record, indent=1))
        return tuple(exports)

    def _who_pays(self) -> dict[str, Any]:
        """Arguments of the card: the changes against the dense model, where they are recorded."""
        study = self.settings.study.folder
        model = tested_in(study, self.row)
        dense = tested_in(study, self.front.dense)
        known = read_known(study)
        if model is None or dense is None or known is None:
            return {}
        what, changes = changes_of({self.row.name: model}, dense, known.signs)
        return {"what": what, "changes": changes.get(self.row.name, ())}

    def _comparison(self, model: nn.Module) -> Comparison:
        """What exports are compared on; the model may be a user's module around the network."""
        settings = self.settings
        data = ready_data(settings.data)
        task = build_task(settings.task, model, data)
        validation = islice(data.val_dataloader(), COMPARED_BATCHES)
        samples = list(inputs_from(task, validation, CPU))
        if not samples:
            raise DataError("validation data must have a batch to compare exports on; it has none")
        count = max(1, settings.phases.finetune.recalibration_batches)
        training = data.train_batches(seed_of(settings.seed, Stream.EXPORT))
        calibration = list(inputs_from(task, islice(training, count), CPU))

        def measure(network: nn.Module) -> dict[str, float]:
            whole = model.around(network) if isinstance(model, Whole) else network
            return evaluate(build_task(settings.task, whole, data), data.val_dataloader(), CPU)

        return Comparison(pruned_part(model), samples, calibration, measure)


def _rule(settings: Settings) -> str:
    """The rule in words: select=smallest, max_drop=0.005."""
    name = settings.select.target.rpartition(".")[2]
    given = {key: value for key, value in settings.select.arguments.items() if value is not None}
    return ", ".join([f"select={name}", *(f"{key}={value}" for key, value in given.items())])


def _show(settings: Settings, front: Front, chosen: Chosen) -> None:
    row = chosen.row
    show(export_table(chosen.exports, front.quality))
    dense = mean_and_spread(front.dense.test_mean, front.dense.test_std)
    ours = mean_and_spread(row.test_mean, row.test_std)
    lines: list[tuple[str, Any]] = [
        ("model", f"{row.words}, by {_rule(settings)}"),
        (front.quality, f"{ours} on test data; dense {dense}"),
    ]
    for cost, ratio in row.ratios.items():
        lines.append((cost, f"{percent(ratio)} of the dense model's"))
    rounding = settings.method.choices()[0].rounding
    for exported in chosen.exports:
        words = shortfall(exported, row.ratios["flops"], rounding)
        if words:
            lines.append(("latency", words))
    lines.append(("files", f"{chosen.folder}; how to load them: {chosen.folder / CARD}"))
    show(summary_table("the chosen model", lines))
