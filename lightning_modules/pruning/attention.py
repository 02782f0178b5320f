"""Attention whose heads are fewer or narrower than its width would hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.structure import AttentionUnit


class SlimAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose heads x head_dim, inputs and outputs may all differ.

    Its tensors and their names are the same. Values may have another width than queries and keys.
    Scores are scaled as in the dense module, by `scale`. It is made from an `nn.MultiheadAttention`
    by `slim` or `loosen`, and never constructed. A mask per head must have as many heads as are
    left.
    """

    head_dim_v: int
    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        fused = query is key and key is value
        if not batched:
            query = query[None]
            key = key[None]
            value = value[None]
        elif not self.batch_first:
            query = query.transpose(0, 1)
            key = key.transpose(0, 1)
            value = value.transpose(0, 1)
        q, k, v = self._heads_of(query, key, value, fused)
        mask = _merge(attn_mask, key_padding_mask, q, k)
        weights: Tensor | None = None
        if need_weights:
            mixed, weights = self._readable(q, k, v, mask)
        else:
            dropout = self.dropout if self.training else 0.0
            causal = is_causal and mask is None
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=self.scale)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out[0], None if weights is None else weights[0]
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _readable(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mixed values and the weights that mixed them, which the fused kernel does not return."""
        scores = q @ k.transpose(-2, -1) * self.scale
        if mask is not None:
            scores = scores + mask
        weights = torch.softmax(scores, -1)
        dropout = self.dropout if self.training else 0.0
        weights = F.dropout(weights, dropout, self.training)
        return weights @ v, weights

    def _heads_of(
        self, query: Tensor, key: Tensor, value: Tensor, fused: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projected queries, keys and values, each (batch, heads, tokens, width of a head)."""
        width = self.head_dim
        width_v = self.head_dim_v
        rows = [self.num_heads * width, self.num_heads * width, self.num_heads * width_v]
        q, k, v = self._project((query, key, value), fused, rows)
        return self._heads(q, width), self._heads(k, width), self._heads(v, width_v)

    def _project(
        self, inputs: tuple[Tensor, Tensor, Tensor], fused: bool, rows: list[int]
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values; one product for all if `fused`, when the inputs are the
        same.
        """
        weight = self.in_proj_weight
        bias = self.in_proj_bias
        if weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif fused:
            return F.linear(inputs[0], weight, bias).split_with_sizes(rows, -1)
        else:
            weights = weight.split_with_sizes(rows)
        biases = (None, None, None) if bias is None else bias.split_with_sizes(rows)
        return tuple(map(F.linear, inputs, weights, biases))

    def _heads(self, x: Tensor, width: int) -> Tensor:
        """(batch, tokens, heads x width) to (batch, heads, tokens, width)."""
        return x.reshape(*x.shape[:-1], self.num_heads, width).transpose(1, 2)


def slim(attention: nn.MultiheadAttention, units: AttentionUnit = "head") -> None:
    """Bring, in place, the sizes of attention in line with its tensors, which were cut.

    `units` says whether heads went, or width of every head. The fast path of
    `nn.TransformerEncoderLayer` assumes heads x head_dim = embed_dim; it is switched off where that
    no longer holds.
    Errors: PlanError if the tensors do not hold whole heads.
    """
    packed = attention.in_proj_weight is not None
    query = attention.in_proj_weight if packed else attention.q_proj_weight
    value_rows = attention.out_proj.weight.shape[1]
    rows = (query.shape[0] - value_rows) // 2 if packed else query.shape[0]
    dense_width = attention.head_dim
    width_v = getattr(attention, "head_dim_v", dense_width)
    scale = _scale(attention)
    if units == "head_dim":
        attention.head_dim = parts(rows, attention.num_heads)
        width_v = parts(value_rows, attention.num_heads)
    else:
        attention.num_heads = parts(rows, dense_width)
        parts(value_rows, width_v)
    inputs = query.shape[1]
    attention.embed_dim = attention.out_proj.weight.shape[0]
    attention.kdim = inputs if packed else attention.k_proj_weight.shape[1]
    attention.vdim = inputs if packed else attention.v_proj_weight.shape[1]
    square = rows == value_rows == attention.embed_dim == inputs
    if not square or dense_width != attention.head_dim:
        _loosen(attention, width_v, scale)


def parts(rows: int, each: int) -> int:
    """`rows` over `each`.

    Errors: PlanError if that is not whole, as when width was cut where heads were meant.
    """
    if rows % each or not rows:
        raise PlanError(
            f"the {rows} rows of an attention projection must be a multiple of {each}; rebuild "
            "with the `attention` of the structure that cut them"
        )
    return rows // each


def loosen(model: nn.Module) -> None:
    """Let values have another width than queries and keys, wherever heads can be cut; in place."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and head_count(module) is not None:
            width_v = getattr(module, "head_dim_v", module.head_dim)
            _loosen(module, width_v, _scale(module))


@contextmanager
def loosened(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block all attention computes its products in one order, cut or not.

    torch's own puts tokens before samples, `SlimAttention` samples before tokens.
    """
    same_width = {}
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            same_width[module] = module._qkv_same_embed_dim
    loosen(model)
    try:
        yield
    finally:
        for module, same in same_width.items():
            if isinstance(module, SlimAttention):
                module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
                module._qkv_same_embed_dim = same
                del module.head_dim_v, module.scale


def _loosen(attention: nn.MultiheadAttention, head_dim_v: int, scale: float) -> None:
    attention.__class__ = SlimAttention
    attention._qkv_same_embed_dim = False  # switches torch's fast path off
    attention.head_dim_v = head_dim_v  # type: ignore[assignment]
    attention.scale = scale  # type: ignore[assignment]


def _scale(attention: nn.MultiheadAttention) -> float:
    if isinstance(attention, SlimAttention):
        return attention.scale
    return float(attention.head_dim**-0.5)


def head_count(module: nn.Module) -> tuple[int, frozenset[int]] | None:
    """(heads, widths of a head) of an attention module whose heads can be cut, else None.

    Widths differ between queries and values only in `SlimAttention`.
    """
    if isinstance(module, nn.MultiheadAttention):
        if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
            return None
        width_v = getattr(module, "head_dim_v", module.head_dim)
        return module.num_heads, frozenset({module.head_dim, width_v})
    heads = getattr(module, "num_heads", None)
    width = getattr(module, "head_dim", None)
    projection = getattr(module, "qkv", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    return (heads, frozenset({width})) if isinstance(projection, nn.Linear) else None


def _merge(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Both masks as one additive mask, broadcastable to (batch, heads, queries, keys).

    True in a boolean mask means that a key is not attended to.
    """
    merged: Tensor | None = None
    if attn_mask is not None:
        merged = _additive(attn_mask, q)
        if merged.dim() == 3:
            merged = merged.reshape(q.shape[0], -1, q.shape[2], k.shape[2])
    if padding is not None:
        keys = _additive(padding, q).reshape(-1, 1, 1, k.shape[2])
        merged = keys if merged is None else merged + keys
    return merged


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    zeros = torch.zeros_like(mask, dtype=like.dtype)
    return zeros.masked_fill(mask, float("-inf"))
