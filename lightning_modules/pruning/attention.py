"""Attention with fewer heads than its width would hold, and how many heads a module has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SlimAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose heads x head_dim, inputs and outputs may all differ; same tensors, same names.

    Made from a pruned `nn.MultiheadAttention` by `slim`, never constructed. A mask per head must have as many
    heads as are left.
    """

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
        q, k, v = (self._heads(x) for x in self._project(query, key, value, fused))
        mask = _merge(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropout, self.training)
            mixed = weights @ v
        else:
            causal = is_causal and mask is None
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        if not batched:
            return out[0], weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor, fused: bool) -> tuple[Tensor, ...]:
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif fused:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = (query, key, value)
        return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, tokens, heads x width) to (batch, heads, tokens, width)."""
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)


def slim(attention: nn.MultiheadAttention) -> None:
    """Mend, in place, attention whose tensors were cut: heads from the projections, width from the output.

    The fast path of `nn.TransformerEncoderLayer` assumes that they are equal; it is switched off where
    that no longer holds.
    """
    packed = attention.in_proj_weight is not None
    query = attention.in_proj_weight if packed else attention.q_proj_weight
    rows = query.shape[0] // 3 if packed else query.shape[0]
    attention.num_heads = rows // attention.head_dim
    attention.embed_dim = attention.out_proj.weight.shape[0]
    attention.kdim = query.shape[1] if packed else attention.k_proj_weight.shape[1]
    attention.vdim = query.shape[1] if packed else attention.v_proj_weight.shape[1]
    if not rows == attention.embed_dim == query.shape[1]:
        attention.__class__ = SlimAttention
        attention._qkv_same_embed_dim = False


def head_count(module: nn.Module) -> tuple[int, int] | None:
    """(heads, width of a head) of an attention module whose heads can be removed, None for anything else."""
    if isinstance(module, nn.MultiheadAttention):
        plain = module.bias_k is None and module.bias_v is None and not module.add_zero_attn
        return (module.num_heads, module.head_dim) if plain else None
    heads, width = getattr(module, "num_heads", None), getattr(module, "head_dim", None)
    if isinstance(heads, int) and isinstance(width, int) and isinstance(getattr(module, "qkv", None), nn.Linear):
        return heads, width
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
