"""Attention as other people write it: whole heads go, or the width that heads share out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import apart, outputs, plan, randomise
from test_counted import is_exact
from torch import Tensor, nn

from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.removal import remove


class Grouped(nn.Module):
    """Separate projections; two queries share the keys of one head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head_dim, self.groups = how, 8, 2
        self.q_proj, self.o_proj = nn.Linear(24, 32), nn.Linear(32, 24)
        self.k_proj, self.v_proj = nn.Linear(24, 16), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (f(x).view(b, n, -1, self.head_dim).transpose(1, 2) for f in layers)
        if self.how != "gqa":
            k, v = self._repeated(k), self._repeated(v)
        if self.how == "eager":
            y = (q @ k.transpose(-2, -1) * 0.35).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.how == "gqa")
        return self.o_proj(y.transpose(1, 2).reshape(b, n, -1))

    def _repeated(self, x: Tensor) -> Tensor:
        if self.how == "interleave":
            return x.repeat_interleave(self.groups, 1)
        b, heads, n, width = x.shape
        x = x[:, :, None].expand(b, heads, self.groups, n, width)
        return x.reshape(b, heads * self.groups, n, width)


class Named(nn.Module):
    """The number and width of heads are attributes, and so is their product."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 8, 32
        self.query, self.key, self.value = (nn.Linear(24, 32) for _ in range(3))
        self.dense = nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], -1, self.num_attention_heads, self.attention_head_size)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        return self.dense(y.reshape(*y.shape[:-2], self.all_head_size))


class Transposed(nn.Module):
    """A linear layer with a weight of shape (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(*x.shape[:-1], self.nf)


class Packed(nn.Module):
    """One transposed layer for queries, keys and values, split by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = 4, 8, 32
        self.c_attn, self.c_proj = Transposed(96, 24), Transposed(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        parts = self.c_attn(x).split(self.split_size, dim=2)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return self.c_proj(y.reshape(*y.shape[:-2], -1).contiguous())


class First(nn.Module):
    """As the first vision transformers: heads share out the width of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = 4, 0.4
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Net(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.patch, self.attention = nn.Conv1d(3, 24, 1), attention
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).transpose(1, 2)
        return self.head((x + self.attention(x)).mean(1))


CASES = {
    "interleave": (lambda: Grouped("interleave"), {"patch": 24, "attention.q_proj": 2}),
    "expand": (lambda: Grouped("expand"), {"patch": 24, "attention.q_proj": 2}),
    "gqa": (lambda: Grouped("gqa"), {"patch": 24, "attention.q_proj": 2}),
    "eager": (lambda: Grouped("eager"), {"patch": 24, "attention.q_proj": 2}),
    "named": (Named, {"patch": 24, "attention.query": 4}),
    "packed": (Packed, {"patch": 24, "attention.c_attn": 4}),
    "first": (First, {"patch": 6}),
}


@pytest.mark.parametrize("name", CASES)
def test_heads_in_every_spelling_are_units(name: str) -> None:
    make, sizes = CASES[name]
    model = randomise(Net(make())).double().eval()
    x = torch.randn(1, 3, 7).double()
    structure = discover(model, (x,))
    assert structure.source == "export"
    assert {group.name: group.size for group in structure.groups} == sizes
    assert [skipped.name for skipped in structure.skipped] == ["head"]
    assert is_exact(model, x, structure)
    keep = plan(structure, np.random.default_rng(0))
    small = remove(model, structure, keep)
    assert apart(outputs(small, (x,)), outputs(masked(model, structure, keep), (x,))) < 1e-10
    more_than_one = [count for count in structure.counts(keep).tolist() if count > 1]
    assert discover(small, (x,)).sizes.tolist() == more_than_one
