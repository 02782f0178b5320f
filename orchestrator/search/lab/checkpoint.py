"""A checkpoint as people have it: its file, its wrappers, and the prefix of its names."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_modules.errors import DataError
from lightning_modules.tasks.whole import Whole
from orchestrator.stored import shapes_in

Shapes = Mapping[str, tuple[int, ...]]
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights")
"""Keys under which training scripts keep a state dict, in the order in which they are tried."""
COMPILED = "_orig_mod."
"""What `torch.compile` puts into names, at any depth."""
SHOWN = 3
"""Names that a message lists; of the others it says how many there are."""
FITTING = "take the checkpoint of this model (phases.train.checkpoint)"


def fill_from(path: Path, model: nn.Module) -> None:
    """Give the model the weights of a file: safetensors, torch.save, or a Lightning checkpoint.

    A prefix of names is taken off where the names fit the model better without it, and said.
    Nothing in the file can run code. Tensors stay in it until they are copied into the model, so
    that a file of any size costs what the model does.
    Errors: DataError for a file that is missing, or does not fit.
    """
    if not path.is_file():
        raise DataError(f"phases.train.checkpoint must be a file; {path} does not exist")
    state: Mapping[str, Tensor] = {}
    if path.suffix == ".safetensors":
        shapes = shapes_in(path, FITTING)
    else:
        state = _opened(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    naming = _naming(shapes, expected, model)
    _check_fit(path, shapes, expected, naming, model)
    _tell(path, naming)
    # read only now, when it is known to fit
    state = state or load_file(path)
    found = {own: state[name] for own, name in naming.names.items()}
    model.load_state_dict(found, strict=False)


@dataclass(frozen=True)
class _Naming:
    """How a model's names are found in a file.

    `names` maps them to the file's. `prefix` stands before them in the file, `part` in the model.
    `outside` are the file's names without the prefix, `odd` those with it that the model lacks.
    """

    prefix: str
    part: str
    names: Mapping[str, str]
    outside: Sequence[str]
    odd: Sequence[str]


def _naming(shapes: Shapes, expected: Shapes, model: nn.Module) -> _Naming:
    """The naming under which most names of the model are in the file; the plainest of equals."""
    parts = [""]
    if isinstance(model, Whole) and model.prefix:
        parts.append(model.prefix)
    candidates = []
    for part in parts:
        for prefix in _prefixes(shapes):
            candidates.append(_named(shapes, expected, prefix, part))
    return max(candidates, key=lambda naming: (len(naming.names), -len(naming.prefix)))


def _prefixes(names: Collection[str]) -> list[str]:
    """Every leading path of the names, and none; short ones first."""
    prefixes = {""}
    for name in names:
        path = _uncompiled(name).split(".")
        for count in range(1, len(path)):
            prefixes.add(".".join(path[:count]) + ".")
    return sorted(prefixes, key=lambda prefix: (len(prefix), prefix))


def _uncompiled(name: str) -> str:
    return name.replace(COMPILED, "")


def _named(shapes: Shapes, expected: Shapes, prefix: str, part: str) -> _Naming:
    own_names = {_uncompiled(name): name for name in expected}
    names = {}
    odd = []
    outside = []
    for name in shapes:
        short = _uncompiled(name)
        if not short.startswith(prefix):
            outside.append(name)
            continue
        own = own_names.get(part + short.removeprefix(prefix))
        if own is None:
            odd.append(name)
        else:
            names[own] = name
    return _Naming(prefix, part, names, outside, odd)


def _check_fit(
    path: Path, shapes: Shapes, expected: Shapes, naming: _Naming, model: nn.Module
) -> None:
    """Errors: DataError that names what is missing, what is odd, and other shapes."""
    tied = _tied(model, naming.names)
    wanted = [name for name in expected if name.startswith(naming.part)]
    missing = [name for name in wanted if name not in naming.names and name not in tied]
    other = []
    for own in wanted:
        name = naming.names.get(own)
        if name is not None and shapes[name] != expected[own]:
            sizes = f"{list(shapes[name])} in the file, {list(expected[own])} in the model"
            other.append(f"{own}: {sizes}")
    faults = []
    if missing:
        faults.append(f"only the model has {_some(sorted(missing))}")
    if naming.odd:
        faults.append(f"only the file has {_some(sorted(naming.odd))}")
    if other:
        faults.append(f"size mismatch for {_some(other, '; ')}")
    if faults:
        raise DataError(
            f"the weights of {path} do not fit the model: {'; '.join(faults)}; {FITTING}"
        )


def _tied(model: nn.Module, found: Collection[str]) -> set[str]:
    """Names of tensors that the file has under another name: it may hold tied weights once."""
    held: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        held.setdefault(id(tensor), []).append(name)
    tied: set[str] = set()
    for names in held.values():
        if any(name in found for name in names):
            tied.update(names)
    return tied


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = len(names) - SHOWN
    listed = between.join(names[:SHOWN])
    return f"{listed} and {more} more" if more > 0 else listed


def _tell(path: Path, naming: _Naming) -> None:
    """One line on stderr about names that were changed or left out."""
    said = []
    if naming.prefix:
        said.append(f"its names are read without '{naming.prefix}'")
    if naming.part:
        said.append(f"it fills '{naming.part}' alone; what lies outside is as it was built")
    if naming.outside:
        said.append(f"left out: {_some(sorted(naming.outside))}")
    if said:
        print(f"{path}: {'; '.join(said)}", file=sys.stderr, flush=True)


def _opened(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file that torch wrote."""
    mappable = _mappable(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise DataError(
            f"phases.train.checkpoint must hold tensors only; {path}: {error}"
        ) from error
    except Exception as error:
        # torch's unpickler raises its own kinds for refused content
        raise DataError(
            f"{path} holds more than tensors and was refused; save model.state_dict()"
        ) from error
    if _is_state_dict(loaded):
        return loaded  # type: ignore[no-any-return]
    for key in WRAPPERS:
        inner: Any = loaded.get(key) if isinstance(loaded, dict) else None
        if _is_state_dict(inner):
            return inner  # type: ignore[no-any-return]
    raise DataError(
        f"{path} must hold a state dict (name -> tensor), alone or under one of "
        f"{', '.join(WRAPPERS)}; save model.state_dict()"
    )


def _is_state_dict(state: Any) -> bool:
    if not isinstance(state, dict) or not state:
        return False
    others = [value for value in state.values() if not isinstance(value, Tensor)]
    return not others


def _mappable(path: Path) -> bool:
    """Whether torch can map the file into memory.

    Errors: DataError for compressed entries of a zip file: torch writes none, and small ones unpack
    to any size.
    """
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(
            f"phases.train.checkpoint must be as torch.save writes it; {path}: {error}"
        ) from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise DataError(
                f"phases.train.checkpoint must be as torch.save writes it; {path} has compressed "
                "entries"
            )
    return True
