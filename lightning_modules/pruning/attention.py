"""Attention with fewer or narrower heads than its width would hold, and how many heads a module has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.structure import AttentionUnit


class SlimAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose heads x head_dim, inputs and outputs may all differ; same tensors, same names.

    Values may have another width than queries and keys; scores are scaled as in the dense module, by `scale`. Made
    from an `nn.MultiheadAttention` by `slim` or `loosen`, never constructed. A mask per head must have as many heads
    as are left.
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
            query, key, value = query[None], key[None], value[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        widths = (self.head_dim, self.head_dim, self.head_dim_v)
        parts = self._project(
            query, key, value, fused, [self.num_heads * width for width in widths]
        )
        q, k, v = (self._heads(x, width) for x, width in zip(parts, widths, strict=True))
        mask = _merge(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.scale
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropout, self.training)
            mixed = weights @ v
        else:
            causal = is_causal and mask is None
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=self.scale)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        if not batched:
            return out[0], weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, fused: bool, rows: list[int]
    ) -> tuple[Tensor, ...]:
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif fused:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).split_with_sizes(
                rows, -1
            )
        else:
            weights = self.in_proj_weight.split_with_sizes(rows)
        biases = (
            (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split_with_sizes(rows)
        )
        inputs = (query, key, value)
        return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))

    def _heads(self, x: Tensor, width: int) -> Tensor:
        """(batch, tokens, heads x width) to (batch, heads, tokens, width)."""
        return x.reshape(*x.shape[:-1], self.num_heads, width).transpose(1, 2)


def slim(attention: nn.MultiheadAttention, units: AttentionUnit = "head") -> None:
    """Mend, in place, attention whose tensors were cut: `units` says whether heads went, or width of every head.

    The fast path of `nn.TransformerEncoderLayer` assumes heads x head_dim = embed_dim; it is switched off where that
    no longer holds.
    Errors: PlanError if the tensors do not hold whole heads.
    """
    packed = attention.in_proj_weight is not None
    query = attention.in_proj_weight if packed else attention.q_proj_weight
    values = attention.out_proj.weight.shape[1]
    rows = (query.shape[0] - values) // 2 if packed else query.shape[0]
    wide, wide_v, scale = (
        attention.head_dim,
        getattr(attention, "head_dim_v", attention.head_dim),
        _scale(attention),
    )
    if units == "head_dim":
        attention.head_dim, wide_v = (
            parts(rows, attention.num_heads),
            parts(values, attention.num_heads),
        )
    else:
        attention.num_heads = parts(rows, wide)
        parts(values, wide_v)
    attention.embed_dim = attention.out_proj.weight.shape[0]
    attention.kdim = query.shape[1] if packed else attention.k_proj_weight.shape[1]
    attention.vdim = query.shape[1] if packed else attention.v_proj_weight.shape[1]
    if not rows == values == attention.embed_dim == query.shape[1] or wide != attention.head_dim:
        _loosen(attention, wide_v, scale)


def parts(rows: int, each: int) -> int:
    """`rows` over `each`. Errors: PlanError if that is not whole, as when width was cut where heads were meant."""
    if rows % each or not rows:
        raise PlanError(
            f"the {rows} rows of an attention projection must be a multiple of {each}; rebuild with the `attention` of "
            "the structure that cut them"
        )
    return rows // each


def loosen(model: nn.Module) -> None:
    """Let values have another width than queries and keys, in place, wherever heads can be taken apart."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and head_count(module) is not None:
            _loosen(module, getattr(module, "head_dim_v", module.head_dim), _scale(module))


def _loosen(attention: nn.MultiheadAttention, head_dim_v: int, scale: float) -> None:
    attention.__class__ = SlimAttention
    attention._qkv_same_embed_dim = False
    attention.head_dim_v, attention.scale = head_dim_v, scale  # type: ignore[assignment]


def _scale(attention: nn.MultiheadAttention) -> float:
    return (
        attention.scale if isinstance(attention, SlimAttention) else float(attention.head_dim**-0.5)
    )


def head_count(module: nn.Module) -> tuple[int, frozenset[int]] | None:
    """(heads, widths of a head) of an attention module whose heads can be cut, None for anything else.

    Widths differ between queries and values only in `SlimAttention`.
    """
    if isinstance(module, nn.MultiheadAttention):
        plain = module.bias_k is None and module.bias_v is None and not module.add_zero_attn
        widths = {module.head_dim, getattr(module, "head_dim_v", module.head_dim)}
        return (module.num_heads, frozenset(widths)) if plain else None
    heads, width = getattr(module, "num_heads", None), getattr(module, "head_dim", None)
    if (
        isinstance(heads, int)
        and isinstance(width, int)
        and isinstance(getattr(module, "qkv", None), nn.Linear)
    ):
        return heads, frozenset({width})
    return None


def _merge(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """One additive mask, broadcastable to (batch, heads, queries, keys); True in a boolean mask = not attended."""
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
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
