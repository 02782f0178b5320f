"""Files that may be damaged, made up, or somebody else's: read within limits, or refused by name.

Nothing here can run code: only JSON and safetensors are read. Names and shapes are seen to fit
before anything is allocated.
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

Content = TypeVar("Content")
MOST_JSON = 64 * 2**20
"""Most bytes of a JSON file; a plan at the end of a lineage of fifty is below one million."""
DEEPEST = 50
"""Most mappings and lists inside one another; ours have about ten."""
MOST_HEADER = 16 * 2**20
"""Most bytes of a safetensors header; a thousand tensors have about a tenth of a million."""


def read_json(path: Path, remedy: str) -> Any:
    """Plain data of a JSON file.

    Errors: DataError, with the remedy, for a file that does not exist, no JSON, too large, or too
    deep.
    """
    try:
        size = path.stat().st_size
        _require(path.is_file(), "it is no file")
        _require(size <= MOST_JSON, f"it has {size} bytes, more than {MOST_JSON}")
        tree = json.loads(path.read_bytes())
        _require(_shallow(tree), f"it is nested deeper than {DEEPEST}")
    except (OSError, ValueError, RecursionError) as error:
        reason = f"nested deeper than {DEEPEST}" if isinstance(error, RecursionError) else error
        raise DataError(f"{path} must be a file of JSON: {reason}; {remedy}") from None
    return tree


def read_cache(path: Path, parse: Callable[[Any], Content]) -> Content | None:
    """A measurement of before, which can be made again.

    None where there is none and, with a line that says so, for a damaged file. `parse` makes the
    value of plain data and raises ValueError, KeyError, IndexError, TypeError or AttributeError for
    others.
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


def check_digest(path: Path, actual: str, expected: str, remedy: str) -> None:
    """Errors: DataError where the sha256 of a file is not the expected one."""
    if actual != expected:
        short = f"{actual[:12]}..., not {expected[:12]}..."
        raise DataError(f"{path} was changed or damaged: its sha256 is {short}; {remedy}")


def check_shapes(
    path: Path, expected: Mapping[str, Tensor], remedy: str, smaller: bool = False
) -> None:
    """Checks names and shapes in the header of a safetensors file; reads nothing else of it.

    `expected` may be on the device `meta`. With `smaller`, shapes may also be smaller.
    Errors: DataError for other names or shapes.
    """
    shapes = shapes_in(path, remedy)
    odd = sorted(set(shapes) ^ set(expected))
    if odd:
        where = "the file" if odd[0] in shapes else "the model"
        raise DataError(
            f"the weights of {path} do not fit the model: only {where} has {odd[0]}; {remedy}"
        )
    for name, tensor in expected.items():
        shape = shapes[name]
        wanted = tuple(tensor.shape)
        if shape != wanted and not (smaller and _is_smaller(shape, wanted)):
            raise DataError(
                f"the weights of {path} do not fit the model: size mismatch for {name}: "
                f"{list(shape)} in the file, {list(wanted)} in the model; {remedy}"
            )


def shapes_in(path: Path, remedy: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name in the header of a safetensors file.

    Errors: DataError for a file that is none, or not whole.
    """
    try:
        with path.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        _require(header <= MOST_HEADER, f"its header has {header} bytes, more than {MOST_HEADER}")
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path} must be a whole safetensors file: {error}; {remedy}") from None


def _is_smaller(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape has as many dimensions as wanted, none empty and none larger."""
    if len(shape) != len(wanted):
        return False
    fits = [0 < size <= most for size, most in zip(shape, wanted, strict=True)]
    return False not in fits


def read_weights(
    path: Path,
    expected: Mapping[str, Tensor],
    remedy: str,
    sha256: str | None,
    smaller: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a file that this program wrote, checked as in `check_shapes`.

    `sha256` None: not known. Errors: DataError also for other types than expected, and for bytes
    that are not those of the digest.
    """
    # torch takes seconds, which JSON need not wait for
    from safetensors.torch import load

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
    """Whether plain data is not too deep; it is walked level by level, without recursion."""
    level = [tree]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                below += part.values()
            elif isinstance(part, list):
                below += part
        if not below:
            return True
        level = below
    return False


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
