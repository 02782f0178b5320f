"""A pruned model from its folder, in any process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.pruning.activations import ActivationPruning
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.removal import rebuild
from lightning_modules.pruning.structure import inside
from lightning_modules.recipe import Recipe, nearest
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.search.plans.finished import PLAN, WEIGHTS, read_plan
from orchestrator.stored import check_digest, read_weights, sha256_of

REMEDY = "take the folder as it was exported, or delete it and give the command of its study again"


def load_pruned(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The module in eval mode on the CPU, from `plan.json` and `weights.safetensors` in `path`.

    The plan names the callable that builds the dense architecture, and it is called: without
    `model` load only plans that you trust like code. With `model`, the dense architecture itself,
    nothing that the files name is imported or called; its own weights do not matter and it is left
    as it was. Errors: DataError for a folder that is damaged or not whole, or weights that are not
    those of the architecture.
    """
    folder = Path(path)
    document = read_plan(folder)
    skeleton = _built(document, folder) if model is None else model
    gone = tuple(document.get("dropped", ()))
    expected = {
        name: tensor for name, tensor in skeleton.state_dict().items() if not inside(name, gone)
    }
    weights = read_weights(folder / WEIGHTS, expected, REMEDY, _digest(document), smaller=True)
    found = rebuild(skeleton, weights, gone, document.get("attention", "head")).eval()
    _require_whole(found, document, folder)
    if (pruned := document.get("activation")) is not None:
        ActivationPruning(pruned["kind"], pruned["level"], tuple(pruned["tensors"])).attach(found)
    return found


def load_exported(path: str | Path, form: str) -> nn.Module:
    """The model in the folder `path` as it was exported to a format, such as `int8`: what runs its
    file.

    Errors: ConfigError for a format that there is not, or whose packages are missing; DataError for
    a folder without such a file, or one that was changed.
    """
    if form not in EXPORT_FORMATS:
        raise ConfigError(
            f"a format must be one of {list(EXPORT_FORMATS)}; got "
            f"'{form}'{nearest(form, list(EXPORT_FORMATS))}"
        )
    entry, folder = EXPORT_FORMATS[form], Path(path)
    exports = read_plan(folder).get("exports", {})
    file = folder / entry.file
    if file.exists():
        if not exports.get(entry.file):
            raise DataError(
                f"{folder / PLAN} must have the sha256 of {entry.file}; it has none; {REMEDY}"
            )
        check_digest(file, sha256_of(file), exports[entry.file], REMEDY)
    return entry.load(file)


def load_int8(path: str | Path) -> nn.Module:
    """The quantised model in `path`, run by ONNX Runtime on the CPU; errors as `load_exported`."""
    return load_exported(path, "int8")


def _built(document: Mapping[str, Any], folder: Path) -> nn.Module:
    try:
        found = Recipe.from_json(document.get("model", {})).build()
    except ConfigError as error:
        raise DataError(
            f"{folder / PLAN} must name what builds its model: {error}; or give model=..."
        ) from error
    if not isinstance(found, nn.Module):
        raise DataError(
            f"{folder / PLAN} must name what builds its model; it built {type(found).__name__}"
        )
    return found


def _digest(document: Mapping[str, Any]) -> str | None:
    """Of the confirmed weights, or of those of a trial; None in a plan without a lineage."""
    if document.get("confirmation") is not None:
        return document["confirmation"]["weights"] or None
    links = document.get("lineage", {}).get("links", ())
    return links[-1].get("weights") or None if links else None


@torch.no_grad()
def _require_whole(model: nn.Module, document: Mapping[str, Any], folder: Path) -> None:
    """Tensors of which each has a shape it could have, and which do not fit one another, show only
    when they meet.
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
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"the weights of {folder} do not fit one another: {reason}") from error
