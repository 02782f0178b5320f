"""Width of attention heads as a unit: every head of a module narrows alike, scores keep the dense
scale.
"""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from models import apart, build, case, outputs, plan, randomise, structure_of
from test_cost import counted
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.attention import SlimAttention
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.removal import rebuild, remove
from lightning_modules.pruning.structure import Structure

NAMES = ["vit", "encoder", "cross_attention", "timm_vit"]


def narrow(name: str) -> Structure:
    return structure_of(name, attention="head_dim")


@pytest.mark.parametrize(
    ("name", "heads", "width", "per_layer"), [("vit", 4, 8, 2), ("timm_vit", 3, 16, 1)]
)
def test_a_unit_is_one_index_of_every_head(
    name: str, heads: int, width: int, per_layer: int
) -> None:
    structure = narrow(name)
    groups = [g for g in structure.groups if g.kind == "head_dim"]
    assert [g.size for g in groups] == [width] * 2 * per_layer
    assert all(g.mask_exact for g in groups)
    packed = structure.table[groups[0].members[0].tensor, 0].reshape(3, heads, width)
    assert (packed[:2] == groups[0].start + np.arange(width)).all()
    assert (packed[2] == groups[per_layer - 1].start + np.arange(width)).all()
    assert structure.attention == "head_dim"
    assert [g.size for g in structure.groups if g.kind != "head_dim"] == [
        g.size for g in case(name).structure.groups if g.kind != "head"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_removed_is_masked_and_costs_are_exact(name: str) -> None:
    this, structure, rng = case(name), narrow(name), np.random.default_rng(0)
    cost = Cost(structure)
    exact = [i for i, group in enumerate(structure.groups) if group.mask_exact]
    for groups in [*([i] for i in exact), exact, exact]:
        keep = plan(structure, rng, groups)
        small = remove(this.model, structure, keep)
        assert (
            apart(
                outputs(small, this.inputs),
                outputs(masked(this.model, structure, keep), this.inputs),
            )
            < 1e-10
        )
    for _ in range(5):
        keep = plan(structure, rng)
        small = remove(this.model, structure, keep)
        assert cost.macs(structure.counts(keep)) == counted(small, this)
        assert cost.params(structure.counts(keep)) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_narrow_model_is_cut_again_trained_and_rebuilt_from_its_tensors(name: str) -> None:
    this, structure, rng = case(name), narrow(name), np.random.default_rng(1)
    first = plan(structure, rng)
    both = first.copy()
    for group in structure.groups:
        alive = group.start + np.flatnonzero(first[group.units])
        both[alive[max(1, len(alive) // 2) :]] = False
    parent = remove(this.model, structure, first)
    small = remove(parent, structure.restrict(first), both)
    once = remove(this.model, structure, both)
    assert apart(outputs(small, this.inputs), outputs(once, this.inputs)) < 1e-12
    torch.stack(
        [t.pow(2).mean() for t in torch.utils._pytree.tree_leaves(small.train()(*this.inputs))]
    ).sum().backward()
    torch.optim.SGD(small.parameters(), lr=1e-6).step()
    stored = io.BytesIO()
    torch.save(small.state_dict(), stored)
    stored.seek(0)
    fresh = rebuild(build(name)[0].double(), torch.load(stored), attention="head_dim")
    assert apart(outputs(fresh, this.inputs), outputs(small, this.inputs)) < 1e-12
    program = torch.export.export(small.eval(), this.inputs)
    with torch.no_grad():
        assert apart([program.module()(*this.inputs)], outputs(small, this.inputs)) < 1e-10


def test_a_width_that_fits_everywhere_still_has_the_dense_scale() -> None:
    """Half of everything looks like a plain module again, whose scale would be that of its new
    width.
    """

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(6, 16)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(x + self.attention(x, x, x, need_weights=False)[0])

    model, x = randomise(Plain()).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    structure = discover(model, (x,), attention="head_dim")
    assert [(g.kind, g.size) for g in structure.groups] == [
        ("neuron", 16),
        ("head_dim", 4),
        ("head_dim", 4),
    ]
    keep = structure.full()
    for group in structure.groups:
        keep[group.start : group.start + group.size // 2] = False
    small = remove(model, structure, keep)
    attention = small.get_submodule("attention")
    assert isinstance(attention, SlimAttention)
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (4, 2, 8)
    assert math.isclose(attention.scale, 4**-0.5)
    assert apart(outputs(small, (x,)), outputs(masked(model, structure, keep), (x,))) < 1e-12
    again = discover(small, (x,), attention="head_dim")
    assert again.sizes.tolist() == [8, 2, 2]


@pytest.mark.parametrize("name", ["vit", "timm_vit"])
def test_narrow_heads_are_not_taken_for_fewer_heads(name: str) -> None:
    this, structure = case(name), narrow(name)
    group = next(g for g in structure.groups if g.kind == "head_dim")
    keep = structure.full()
    keep[group.start] = False
    with pytest.raises(PlanError, match="`attention` of the structure"):
        rebuild(build(name)[0].double(), remove(this.model, structure, keep).state_dict())


def test_an_attention_that_scales_by_its_own_width_keeps_it_and_says_so() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.head_dim = 2, 8
            self.qkv, self.out = nn.Linear(6, 48), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                self.qkv(x)
                .reshape(*x.shape[:2], 3, self.num_heads, self.head_dim)
                .permute(2, 0, 3, 1, 4)
            )
            return self.out(
                nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            )

    structure = discover(Attention(), (torch.randn(2, 5, 6),), attention="head_dim")
    assert not structure.groups
    assert "removed and masked units differ" in {s.name: s.reason for s in structure.skipped}["qkv"]
