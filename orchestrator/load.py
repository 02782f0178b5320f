"""A pruned model from its folder, in any process."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from lightning_modules.errors import DataError
from lightning_modules.phases.quantization import Int8Model
from lightning_modules.pruning.activations import ActivationPruning
from lightning_modules.pruning.removal import rebuild
from lightning_modules.recipe import Recipe
from orchestrator.search.finished import INT8, WEIGHTS, read_plan


def load_pruned(path: str | Path) -> nn.Module:
    """The module in eval mode on the CPU, from `plan.json` and `weights.safetensors` in `path`.

    The plan names the callable that builds the dense architecture, and it is called: load only plans you trust like
    code. Errors: DataError for a folder that is not whole, or weights that are not those of the architecture.
    """
    folder = Path(path)
    document = read_plan(folder)
    try:
        weights = load((folder / WEIGHTS).read_bytes())
    except (OSError, SafetensorError) as error:
        raise DataError(f"a pruned model needs its {WEIGHTS}; {folder}: {error}") from error
    skeleton: nn.Module = Recipe.from_json(document["model"]).build()
    gone = tuple(document.get("dropped", ()))
    wanted = {name for name in skeleton.state_dict() if not name.startswith(tuple(f"{path}." for path in gone))}
    if set(weights) != wanted:
        raise DataError(f"the weights in {folder} are not those of {document['model']}")
    model = rebuild(skeleton, weights, gone, document.get("attention", "head")).eval()
    if (pruned := document.get("activation")) is not None:
        ActivationPruning(pruned["kind"], pruned["level"], tuple(pruned["tensors"])).attach(model)
    return model


def load_int8(path: str | Path) -> nn.Module:
    """The quantised model in `path`, run by ONNX Runtime on the CPU; for plans with `int8`.

    Errors: ConfigError without the extra `int8`, DataError for a folder without such a model.
    """
    return Int8Model(Path(path) / INT8)
