"""Attention in other people's words: what modules call their heads, and what to set when some go.

Any module is meant that has a projection for queries, or one for queries, keys and values, and says
how wide a head is. Its heads may be fewer than the dense model's; their width never changes.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
"""Attributes that hold the number of heads."""
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
"""Attributes that hold the number of heads of keys and values, which several queries share."""
WIDTHS = (
    "head_dim",
    "attention_head_size",
    "dim_per_head",
    "dim_head",
    "head_size",
    "d_head",
    "key_value_proj_dim",
    "d_kv",
)
"""Attributes that hold the width of a head."""
INNER = ("all_head_size", "inner_dim", "split_size", "attn_dim", "dim")
"""Attributes that hold, in some modules, the heads times their width."""
QUERIES = ("q_proj", "query", "q_lin", "q", "to_q", "wq", "q_linear", "query_proj")
KEYS = ("k_proj", "key", "k_lin", "k", "to_k", "wk", "k_linear", "key_proj")
FUSED = ("qkv", "c_attn", "query_key_value", "Wqkv", "qkv_proj", "in_proj", "to_qkv")
"""Layers that project to queries, keys and values at once, in equal parts."""


def head_width(module: nn.Module) -> int | None:
    """The width of a head, as the module says it or as its numbers give it; None if neither."""
    if _query_rows(module) is None:
        return None
    width = _number(module, WIDTHS)
    heads = _number(module, HEADS)
    if width is not None or heads is None:
        return width
    inner = _number(module, INNER)
    return None if inner is None or inner % heads else inner // heads


def takes_width_of_input(module: nn.Module) -> bool:
    """Whether the heads share out whatever width the input has: their number alone is known."""
    return heads_alone(module) is not None


def heads_alone(module: nn.Module) -> int | None:
    """The number of heads of a module that knows no more of them; None for any other."""
    if _number(module, WIDTHS) is not None or _number(module, INNER) is not None:
        return None
    return _number(module, HEADS)


def respell(module: nn.Module) -> None:
    """Bring the numbers of an attention module in line with its projections, in place.

    They still describe the sizes before heads went. A module without such numbers, or whose rows
    are no whole heads, is left as it is.
    """
    width = head_width(module)
    rows = _query_rows(module)
    if width is None or rows is None or rows % width:
        return
    heads_before = _number(module, HEADS)
    if heads_before is not None:
        _replace(module, INNER, heads_before * width, rows)
        _replace(module, HEADS, heads_before, rows // width)
    key_rows = _rows(module, KEYS)
    key_heads = _number(module, KEY_HEADS)
    if key_rows is not None and key_heads is not None:
        _replace(module, KEY_HEADS, key_heads, key_rows // width)


def retransposed(module: nn.Module) -> None:
    """Bring in line, in place, a linear layer whose weight is (inputs, outputs), as in GPT-2."""
    if _is_transposed(module):
        inputs, outputs = module._parameters["weight"].shape  # type: ignore[union-attr]
        module.nf = outputs  # type: ignore[assignment]
        if isinstance(getattr(module, "nx", None), int):
            module.nx = inputs  # type: ignore[assignment]


def _is_transposed(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and isinstance(getattr(module, "nf", 0.0), int)


def _query_rows(module: nn.Module) -> int | None:
    """The outputs of the projection of queries."""
    rows = _rows(module, QUERIES)
    if rows is not None:
        return rows
    fused = _rows(module, FUSED)
    return None if fused is None or fused % 3 else fused // 3


def _rows(module: nn.Module, names: Iterable[str]) -> int | None:
    """The outputs of the first of the named layers that the module has."""
    for name in names:
        layer = module._modules.get(name)
        if isinstance(layer, nn.Linear):
            return int(layer.weight.shape[0])
        if layer is not None and _is_transposed(layer):
            weight = layer._parameters["weight"]
            return None if weight is None else int(weight.shape[1])
    return None


def _number(module: nn.Module, names: Iterable[str]) -> int | None:
    """The first of the named attributes that is a whole number above 0."""
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _replace(module: nn.Module, names: Iterable[str], before: int, after: int) -> None:
    """Set those of the attributes that have the value `before`."""
    for name in names:
        if getattr(module, name, None) == before:
            setattr(module, name, after)
