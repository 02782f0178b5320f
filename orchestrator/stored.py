"""Files that may be damaged, made up, or somebody else's: read within limits, or refused by name.

Nothing here can run code: JSON and safetensors alone. Names and shapes are seen to fit before
anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from lightning_modules.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
MOST_JSON = 64 * 2**20
"""Bytes of a JSON file; a plan at the end of a chain of fifty is below one million."""
DEEPEST = 50
"""Mappings and lists inside one another; ours have about ten."""
MOST_HEADER = 16 * 2**20
"""Bytes of a safetensors header; a thousand tensors have about a tenth of a million."""


def read_json(path: Path, remedy: str) -> Any:
    """Errors: DataError, with the remedy, for a file that is not there, no JSON, too large, or too
    deep.
    """
    try:
        size = path.stat().st_size
        _require(path.is_file(), "it is no file")
        _require(size <= MOST_JSON, f"it has {size} bytes, more than {MOST_JSON}")
        found = json.loads(path.read_bytes())
        _require(_shallow(found), f"it is nested deeper than {DEEPEST}")
    except (OSError, ValueError, RecursionError) as error:
        reason = f"nested deeper than {DEEPEST}" if isinstance(error, RecursionError) else error
        raise DataError(f"{path} must be a file of JSON: {reason}; {remedy}") from None
    return found


def kept(path: Path, parse: Callable[[Any], T]) -> T | None:
    """What was measured before and can be measured again; None, with a line that says so, for a
    damaged file.

    `parse` makes the value of plain data and raises ValueError, KeyError, IndexError, TypeError or
    AttributeError for others.
    """
    if not path.exists():
        return None
    try:
        return parse(read_json(path, "delete it"))
    except (DataError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        tell_damaged(path, error)
        return None


def tell_damaged(path: Path, error: Exception) -> None:
    """One line on stderr about a file that is now made anew."""
    print(
        f"{path} is damaged and is made anew: {type(error).__name__}: {error}",
        file=sys.stderr,
        flush=True,
    )


def sha256_of(path: Path) -> str:
    """The digest of a file of any size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_digest(path: Path, found: str, expected: str, remedy: str) -> None:
    """Errors: DataError where the sha256 of a file is not the one that was written down."""
    if found != expected:
        short = f"{found[:12]}..., not {expected[:12]}..."
        raise DataError(f"{path} was changed or damaged: its sha256 is {short}; {remedy}")


def check_shapes(
    path: Path, expected: Mapping[str, Tensor], remedy: str, smaller: bool = False
) -> None:
    """Errors: DataError unless the header of a safetensors file names these tensors in these
    shapes, or `smaller` ones.

    `expected` may be on the device `meta`. The header alone is read.
    """
    try:
        with path.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        _require(header <= MOST_HEADER, f"its header has {header} bytes, more than {MOST_HEADER}")
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path} must be a whole safetensors file: {error}; {remedy}") from None
    odd = sorted(set(shapes) ^ set(expected))
    if odd:
        where = "the file" if odd[0] in shapes else "the model"
        raise DataError(
            f"the weights of {path} do not fit the model: only {where} has {odd[0]}; {remedy}"
        )
    for name, tensor in expected.items():
        shape, wanted = shapes[name], tuple(tensor.shape)
        least = len(shape) == len(wanted) and all(
            0 < a <= b for a, b in zip(shape, wanted, strict=True)
        )
        if shape != wanted and not (smaller and least):
            raise DataError(
                f"the weights of {path} do not fit the model: size mismatch for {name}: "
                f"{list(shape)} in the file, "
                f"{list(wanted)} in the model; {remedy}"
            )


def read_weights(
    path: Path,
    expected: Mapping[str, Tensor],
    remedy: str,
    sha256: str | None,
    smaller: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a file that this program wrote, checked as in `check_shapes`; `sha256` None:
    not known.

    Errors: DataError also for other types than expected, and for bytes that are not those of the
    digest.
    """
    from safetensors.torch import load  # torch takes seconds, which JSON need not wait for

    check_shapes(path, expected, remedy, smaller)
    content = path.read_bytes()
    if sha256 is not None:
        check_digest(path, hashlib.sha256(content).hexdigest(), sha256, remedy)
    weights: dict[str, Tensor] = load(content)
    for name, tensor in weights.items():
        if tensor.dtype != expected[name].dtype:
            raise DataError(
                f"{path} must hold {expected[name].dtype} for {name}; it has {tensor.dtype}; "
                f"{remedy}"
            )
    return weights


def _shallow(tree: Any) -> bool:
    """Level by level, without recursion."""
    level = [tree]
    for _ in range(DEEPEST):
        level = [
            item
            for found in level
            if isinstance(found, dict | list)
            for item in (found.values() if isinstance(found, dict) else found)
        ]
        if not level:
            return True
    return False


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
