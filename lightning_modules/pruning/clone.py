"""A deep copy of modules around given tensors, faster than `copy.deepcopy` with the same result."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)
ATOMIC = frozenset(
    (
        int,
        float,
        bool,
        str,
        type(None),
        complex,
        bytes,
        torch.dtype,
        torch.device,
        torch.Size,
        types.FunctionType,
        type,
    )
)


def clone(module: M, memo: dict[int, Any]) -> M:
    """A deep copy in which `memo`, as in `copy.deepcopy`, names what stands in for an object, by its id.

    Most of a deepcopy goes into the twenty mostly empty dictionaries of every module; those are rebuilt directly.
    A class with a copy protocol of its own is copied by that.
    """
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[no-any-return]
    kind = type(module)
    if hasattr(kind, "__deepcopy__") or kind.__reduce_ex__ is not object.__reduce_ex__:
        return copy.deepcopy(module, memo)
    twin = kind.__new__(kind)
    memo[id(module)] = twin
    twin.__setstate__({name: _value(value, memo) for name, value in module.__getstate__().items()})  # type: ignore
    return twin


def _value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in ATOMIC:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        twin: dict[Any, Any] = kind()
        memo[id(value)] = twin
        if not value:
            return twin
        for key, item in value.items():
            twin[key] = _value(item, memo)
        return twin
    if isinstance(value, nn.Module):
        return clone(value, memo)
    if kind in (tuple, list, set) and all(type(item) in ATOMIC for item in value):
        return kind(value)  # A tuple is itself.
    return copy.deepcopy(value, memo)
