"""Structures of models, discovered once for a whole run of the tests, however many workers share
it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_modules.pruning.structure import Structure

_FOUND: dict[str, Structure] = {}
_FOLDER: list[Path] = []


def share(folder: Path) -> None:
    """From now on what is found lies in `folder` too, where the other workers of this run look."""
    folder.mkdir(exist_ok=True)
    _FOLDER[:] = [folder]


def discovered(
    name: str, inputs: Callable[[], tuple[Any, tuple[Any, ...]]], **options: Any
) -> Structure:
    """The structure of the model and the inputs that `inputs` makes; `name` and `options` say which
    it is.

    A test that breaks the rules of discovery, or is about what it takes, calls `discover` itself.
    """
    key = " ".join([name, *(f"{option}={value}" for option, value in sorted(options.items()))])
    if key not in _FOUND:
        _FOUND[key] = _from_others(key) or _anew(key, inputs, options)
    return _FOUND[key]


def small_resnet(blocks: int = 1, **options: Any) -> Structure:
    """That of a `SmallResNet(10, blocks=blocks)`."""

    def inputs() -> tuple[Any, tuple[Any, ...]]:
        import torch

        from lightning_modules.models import SmallResNet

        return SmallResNet(10, blocks=blocks), (torch.zeros(1, 1, 8, 8),)

    return discovered(f"small resnet {blocks}", inputs, **options)


def as_before(model: Any, examples: Any, **options: Any) -> Structure:
    """What `discover` finds; once for each of the project's own models, whatever its weights
    are.
    """
    from lightning_modules.pruning.discovery import discover
    from lightning_modules.recipe import digest

    if not type(model).__module__.startswith("lightning_modules."):
        return discover(model, examples, **options)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    inputs = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in examples.tensors()]
    name = digest([repr(model), str(shapes), str(inputs)])
    return discovered(name, lambda: (model, examples), **options)


def _from_others(key: str) -> Structure | None:
    for folder in _FOLDER:
        if (folder / key).exists():
            found = pickle.loads((folder / key).read_bytes())
            assert isinstance(found, Structure)
            return found
    return None


def _anew(
    key: str, inputs: Callable[[], tuple[Any, tuple[Any, ...]]], options: dict[str, Any]
) -> Structure:
    from lightning_modules.pruning.discovery import discover

    model, examples = inputs()
    structure = discover(
        model, examples, **{"seconds": 120.0, **options}
    )  # whatever else the machine does
    for folder in _FOLDER:
        part = folder / f"{key}.{os.getpid()}"
        part.write_bytes(pickle.dumps(structure))
        part.rename(folder / key)  # whole or not there: another worker may be about to read it
    return structure
