"""A pruned model from its folder, in any process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import nn

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.pruning.activations import ActivationPruning
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.removal import rebuild
from lightning_modules.pruning.structure import inside
from lightning_modules.recipe import Recipe, nearest
from lightning_modules.tasks.whole import Whole
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.search.plans.finished import PLAN, WEIGHTS, read_plan
from orchestrator.stored import check_digest, read_weights, sha256_of

REMEDY = "take the folder as it was exported, or delete it and give the command of its study again"


def load_pruned(path: str | Path, model: nn.Module | None = None, whole: bool = False) -> nn.Module:
    """The network in eval mode on the CPU, from `plan.json` and `weights.safetensors` in `path`.

    The plan names the callable that builds the dense architecture, and it is called: without
    `model` load only plans that you trust like code. With `model`, the dense architecture itself,
    nothing that the files name is imported or called; its own weights do not matter and it is left
    as it was. Of a network inside of a LightningModule, `model` is that module, and `whole` gives
    back the whole module around the pruned network.
    Errors: DataError for a folder that is damaged or not whole, or weights that are not those of
    the architecture.
    """
    folder = Path(path)
    document = read_plan(folder)
    dense = _built(document, folder) if model is None else model
    if isinstance(dense, LightningModule):
        dense = Whole(dense, document.get("network"))
    gone = tuple(document.get("dropped", ()))
    expected = {}
    for name, tensor in dense.state_dict().items():
        if not inside(name, gone):
            expected[name] = tensor
    weights = read_weights(folder / WEIGHTS, expected, REMEDY, _digest(document), smaller=True)
    rebuilt = rebuild(dense, weights, gone, document.get("attention", "head")).eval()
    _require_whole(rebuilt, document, folder)
    pruned = document.get("activation")
    if pruned is not None:
        fed = tuple(pruned["tensors"])
        ActivationPruning(pruned["kind"], pruned["level"], fed).attach(rebuilt)
    if isinstance(rebuilt, Whole):
        return rebuilt.module if whole else rebuilt.network
    return rebuilt


def load_exported(path: str | Path, form: str) -> nn.Module:
    """The model in the folder `path` as it was exported to a format, such as `int8`.

    The module runs the exported file.
    Errors: ConfigError for a format that does not exist, or whose packages are missing; DataError
    for a folder without such a file, or one that was changed.
    """
    known = list(EXPORT_FORMATS)
    if form not in known:
        raise ConfigError(f"a format must be one of {known}; got '{form}'{nearest(form, known)}")
    entry = EXPORT_FORMATS[form]
    folder = Path(path)
    exports = read_plan(folder).get("exports", {})
    file = folder / entry.file
    if file.exists():
        digest = exports.get(entry.file)
        if not digest:
            raise DataError(
                f"{folder / PLAN} must have the sha256 of {entry.file}; it has none; {REMEDY}"
            )
        check_digest(file, sha256_of(file), digest, REMEDY)
    return entry.load(file)


def load_int8(path: str | Path) -> nn.Module:
    """The quantised model in `path`, run by ONNX Runtime on the CPU; errors as `load_exported`."""
    return load_exported(path, "int8")


def _built(document: Mapping[str, Any], folder: Path) -> nn.Module:
    try:
        built = Recipe.from_json(document.get("model", {})).build()
    except ConfigError as error:
        raise DataError(
            f"{folder / PLAN} must name what builds its model: {error}; or give model=..."
        ) from error
    if not isinstance(built, nn.Module):
        raise DataError(
            f"{folder / PLAN} must name what builds its model; it built {type(built).__name__}"
        )
    return built


def _digest(document: Mapping[str, Any]) -> str | None:
    """The digest of the confirmed weights, or of those of a trial.

    None in a plan without a lineage.
    """
    if document.get("confirmation") is not None:
        return document["confirmation"]["weights"] or None
    links = document.get("lineage", {}).get("links", ())
    if not links:
        return None
    return links[-1].get("weights") or None


@torch.no_grad()
def _require_whole(model: nn.Module, document: Mapping[str, Any], folder: Path) -> None:
    """Runs the model once.

    Each tensor may have a possible shape and still not fit the others; that shows only when they
    meet.
    Errors: DataError for tensors that do not fit one another.
    """
    try:
        inputs = Inputs.from_json(document.get("inputs"))
    except DataError as error:
        raise DataError(
            f"{folder / PLAN} must describe the inputs of its model: {error}; {REMEDY}"
        ) from error
    try:
        inputs.call(model)
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"the weights of {folder} do not fit one another: {lines[0]}") from error
