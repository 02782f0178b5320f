"""MODEL_CARD.md: on one page what a chosen model is, what it costs, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.costs import COSTS
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.export.parity import Exported
from orchestrator.results.choose import Front
from orchestrator.results.quantities import cost_words, mean_and_spread, percent
from orchestrator.results.rows import ConfirmedRow
from orchestrator.results.who_pays import CLASS, Change

MOST_GROUPS = 12
"""Groups that the card lists; those that lost most."""
MOST_PAYING = 5
"""Classes that the card lists; those that lose most."""
PYTHON = "import onnxruntime, orchestrator, torch"


@dataclass(frozen=True)
class Card:
    """What the card tells.

    `rule` says how the model was chosen, `folder` is where the card lies. `document` is the model's
    `plan.json`, `inputs` are the names of its inputs. `changes` are those of each class, or of
    `what` else the task tells, against the dense model, the greatest loss first.
    """

    study: str
    network: str
    folder: str
    rule: str
    front: Front
    row: ConfirmedRow
    document: Mapping[str, Any]
    exports: Sequence[Exported]
    inputs: Sequence[str]
    what: str = CLASS
    changes: Sequence[Change] = ()

    def text(self) -> str:
        parts = [
            self._head(),
            self._costs(),
            *self._who_pays(),
            self._pruned(),
            self._made(),
            self._files(),
            self._loading(),
        ]
        return "\n\n".join(parts) + "\n"

    def _head(self) -> str:
        dense = self.front.dense
        quality = self.front.quality
        difference = self.row.test_mean - dense.test_mean
        return (
            f"# {self.network}, pruned\n\n"
            f"{self.row.words.capitalize()} of the study `{self.study}`, chosen by {self.rule}.\n\n"
            f"Its {quality} on test data is "
            f"{mean_and_spread(self.row.test_mean, self.row.test_std)} over {self.row.seeds} "
            f"seeds; the dense model's is {mean_and_spread(dense.test_mean, dense.test_std)} "
            f"({difference:+.4f}). The weights here are those of the seed that validated best. "
            "Test data was read once, after the search."
        )

    def _costs(self) -> str:
        lines = ["## Costs", "", "| cost | this model | dense | left |", "|---|---|---|---|"]
        for name in COSTS:
            if name not in self.row.costs or name not in self.front.dense.costs:
                continue
            ours = cost_words(name, self.row.costs[name])
            dense = cost_words(name, self.front.dense.costs[name])
            left = percent(self.row.ratios[name]) if name in self.row.ratios else ""
            lines.append(f"| {name} | {ours} | {dense} | {left} |")
        return "\n".join(lines)

    def _who_pays(self) -> list[str]:
        """What loses most against the dense model, and what gains most; nothing where untold."""
        if not self.changes:
            return []
        many = "classes" if self.what == CLASS else "metrics"
        shown = list(self.changes[:MOST_PAYING])
        if len(self.changes) > MOST_PAYING:
            shown.append(self.changes[-1])
        lines = [
            "## Who pays",
            "",
            f"Of {len(self.changes)} {many} those that lose most on test data, then the one that "
            "gains most or loses least; one standard deviation over the seeds.",
            "",
            f"| {self.what} | dense | change |",
            "|---|---|---|",
        ]
        for change in shown:
            name = change.name.replace("|", "\\|")
            lines.append(f"| {name} | {change.dense:.4f} | {change.words(self.what)} |")
        return ["\n".join(lines)]

    def _pruned(self) -> str:
        """Whole blocks, then the groups with the fewest units left."""
        left = {}
        for group, runs in self.document["keep"].items():
            left[group] = sum(end - first for first, end in runs)
        lines = ["## What was pruned", ""]
        dropped = self.document.get("dropped", ())
        if dropped:
            lines += [f"Whole blocks are gone: {', '.join(dropped)}.", ""]
        lines += ["| group | units left |", "|---|---|"]
        for group in sorted(left, key=lambda name: left[name])[:MOST_GROUPS]:
            lines.append(f"| {group} | {left[group]} |")
        if len(left) > MOST_GROUPS:
            lines += ["", f"{len(left) - MOST_GROUPS} groups with more units are not listed."]
        return "\n".join(lines)

    def _made(self) -> str:
        if "lineage" not in self.document:
            return (
                "## How it was made\n\n"
                f"The baseline `{self.row.origin}` made it: pruned by `{self.document['method']}` "
                f"to the cost of trial {self.row.trial}, finetuned as long. It stands on the front "
                "because it is ahead of the search's models on validation data."
            )
        links = self.document["lineage"]["links"]
        trials = [str(link["trial"]) for link in links]
        rounds = sum(link["trained_rounds"] for link in links)
        method = self.document["plan"]["method"]
        return (
            "## How it was made\n\n"
            f"Method `{method}`, {len(links)} pruning plans from the dense model on (trials "
            f"{', '.join(trials)}), {rounds} rounds of finetuning. `plan.json` has every plan with "
            "its seed and the sha256 of its weights. The options of the study with `job=replay "
            f"job.model={self.folder}` make it again, and say whether it is the same bit for bit."
        )

    def _files(self) -> str:
        quality = self.front.quality
        lines = [
            "## Files",
            "",
            f"Outputs are compared with PyTorch on validation data; {quality} is measured there in "
            "the format's own engine. Latencies are medians of passes in turn with the dense one, "
            "in floating point in the same engine, on the machine that exported.",
            "",
            f"| file | MB | seconds to load | largest difference | equal predictions | {quality} "
            "| ms | dense ms | faster |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for export in self.exports:
            lines.append(self._file(export))
        sums = [f"{export.sha256}  {export.file}" for export in self.exports if export.sha256]
        return "\n".join([*lines, "", "```", *sums, "```"])

    def _file(self, export: Exported) -> str:
        if export.reason:
            return f"| {export.file} | not there: {export.reason} | | | | | | | |"
        equal = "" if export.equal_predictions is None else percent(export.equal_predictions)
        quality = export.metrics.get(self.front.quality)
        cells = [
            export.file,
            f"{export.size_mb:.2f}",
            f"{export.load_seconds:.2f}",
            f"{export.largest_difference:.2g}",
            equal,
            "" if quality is None else f"{quality:.4f}",
            *self._latency(export),
        ]
        return f"| {' | '.join(cells)} |"

    def _latency(self, export: Exported) -> list[str]:
        """Cells: the file's milliseconds with their quartiles, the dense model's, their ratio."""
        if export.latency_ms is None or export.faster is None:
            return ["", "", ""]
        return [
            f"{export.latency_ms:.3g} (quartiles {export.latency_iqr_ms:.2g} apart)",
            f"{export.dense_latency_ms:.3g}",
            f"{export.faster:.1f}x",
        ]

    def _loading(self) -> str:
        lines = ["## Loading", "", "```python", PYTHON, ""]
        lines.append("# in PyTorch, with this project: a plain nn.Module that can be trained on")
        lines.append(f'model = orchestrator.load_pruned("{self.folder}")')
        for export in self.exports:
            if not export.reason:
                usage = EXPORT_FORMATS[export.format].usage
                lines += ["", f"# {export.format}, without this project"]
                path = f"{self.folder}/{export.file}"
                lines.append(usage.format(file=path, inputs=list(self.inputs)))
        return "\n".join([*lines, "```"])
