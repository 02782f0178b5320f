"""Whole residual blocks as units: which there are, that the rest goes on without them, and what it
costs then.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import timm
import torch
import torchvision.models as tv
from models import (
    ZOO,
    Case,
    _timm_vit,
    apart,
    mobilenet_short,
    outputs,
    plan,
    randomise,
    structure_of,
)
from test_cost import counted
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.models.small import SmallResNet
from lightning_modules.pruning.cost import Cost, prunable_macs_fraction
from lightning_modules.pruning.depth import PassThrough
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.optimizer import by_name, slice_state
from lightning_modules.pruning.removal import rebuild, remove
from lightning_modules.pruning.structure import Keep, Structure, dropped
from tests.structures import discovered


class Text(nn.Module):
    """Pre-norm transformer layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layers = [
            nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x)).mean(1))


RESNET18 = ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
MOBILE = [f"features.{i}" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "resnet18": (lambda: tv.resnet18(num_classes=10), (3, 32, 32), RESNET18),
    "small": (
        lambda: SmallResNet(10, 3, 8, 2),
        (3, 16, 16),
        ["stages.0.0", "stages.0.1", "stages.1.1", "stages.2.1"],
    ),
    "vit": (
        lambda: tv.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=7),
        (3, 32, 32),
        ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"],
    ),
    "timm_vit": (_timm_vit, (3, 32, 32), ["blocks.0", "blocks.1"]),
    "text": (Text, (6,), ["layers.0", "layers.1"]),
    "mobilenet_short": (mobilenet_short, (3, 32, 32), MOBILE[:2]),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(num_classes=10), (3, 32, 32), MOBILE),
    "convnext": (
        lambda: timm.create_model("convnext_atto", num_classes=7, depths=(1, 1, 2, 1)),
        (3, 64, 64),
        [
            "stages.0.blocks.0",
            "stages.1.blocks.0",
            "stages.2.blocks.0",
            "stages.2.blocks.1",
            "stages.3.blocks.0",
        ],
    ),
}


ALL = [
    pytest.param(
        name, marks=[pytest.mark.slow] * (name in ("resnet18", "mobilenet_v2", "convnext"))
    )
    for name in MODELS
]


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, shape, _ = MODELS[name]
    torch.manual_seed(0)
    x = torch.randint(0, 20, (2, *shape)) if name == "text" else torch.randn(2, *shape)
    return make(), (x,)


@cache
def case(name: str) -> Case:
    model, inputs = build(name)
    structure = discovered(f"deep {name}", lambda: build(name), depth=True)
    exact = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    return Case(name, randomise(model).double().eval(), exact, structure)


def blocks(structure: Structure) -> list[int]:
    return [index for index, group in enumerate(structure.groups) if group.kind == "block"]


def cut(structure: Structure, rng: np.random.Generator, groups: list[int], gone: list[int]) -> Keep:
    """Some units of the channel `groups`, and the blocks `gone`."""
    keep = plan(structure, rng, groups)
    for index in gone:
        keep[structure.groups[index].units] = False
    return keep


@pytest.mark.parametrize("name", ALL)
def test_blocks_that_only_add_are_units_after_all_others(name: str) -> None:
    this = case(name)
    structure = this.structure
    plain = structure_of(name) if name in ZOO else discovered(f"deep {name}", lambda: build(name))
    found = blocks(structure)
    assert [structure.groups[index].name for index in found] == MODELS[name][2]
    assert structure.groups[: len(plain.groups)] == plain.groups
    assert found == list(range(len(plain.groups), len(structure.groups)))
    assert all(structure.groups[i].size == 1 and not structure.groups[i].members for i in found)
    assert structure.least.tolist() == [1] * len(plain.groups) + [0] * len(found)
    assert all(np.array_equal(structure.table[axis], row) for axis, row in plain.table.items())
    assert structure.skipped == plain.skipped
    assert prunable_macs_fraction(plain) <= prunable_macs_fraction(structure)
    assert Cost(structure).macs(structure.sizes) == Cost(plain).macs(plain.sizes)


@pytest.mark.parametrize("name", ALL)
def test_a_block_at_zero_is_a_block_that_is_gone(name: str) -> None:
    this, rng = case(name), np.random.default_rng(0)
    structure, found = this.structure, blocks(this.structure)
    exact = [i for i, group in enumerate(structure.groups) if group.mask_exact and i not in found]
    for channels, gone in [
        *(([], [i]) for i in found),
        ([], found),
        (exact, found[::2]),
        (exact, found[1::2]),
    ]:
        keep = cut(structure, rng, channels, gone)
        small = remove(this.model, structure, keep)
        paths = dropped(structure, keep)
        assert list(paths) == [structure.groups[i].name for i in gone]
        assert all(type(small.get_submodule(path)) is PassThrough for path in paths)
        assert (
            apart(
                outputs(small, this.inputs),
                outputs(masked(this.model, structure, keep), this.inputs),
            )
            < 1e-10
        )


@pytest.mark.parametrize("name", ALL)
def test_costs_without_blocks_are_exact(name: str) -> None:
    this, rng = case(name), np.random.default_rng(1)
    structure, found, cost = this.structure, blocks(this.structure), Cost(this.structure)
    others = list(range(found[0]))
    for channels in ([], others, others):
        gone = [i for i in found if rng.random() < 0.5]
        keep = cut(structure, rng, channels, gone)
        small, counts = remove(this.model, structure, keep), structure.counts(keep)
        assert cost.macs(counts) == counted(small, this)
        assert cost.params(counts) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("name", ALL)
def test_channels_and_blocks_go_in_any_order_and_the_rest_trains_and_reloads(name: str) -> None:
    this, rng = case(name), np.random.default_rng(2)
    structure, found = this.structure, blocks(this.structure)
    channels, gone = (
        plan(structure, rng, list(range(found[0]))),
        cut(structure, rng, [], found[::2]),
    )
    once = remove(this.model, structure, channels & gone)
    expected = outputs(once, this.inputs)
    for first in (channels, gone):
        parent, inner = remove(this.model, structure, first), structure.restrict(first)
        small = remove(parent, inner, channels & gone)
        assert apart(outputs(small, this.inputs), expected) == 0.0
        assert small.state_dict().keys() == once.state_dict().keys()
    left = structure.restrict(gone)
    paths = dropped(structure, gone)
    assert [group.name for group in left.groups] == [group.name for group in structure.groups]
    assert not any(axis[0].startswith(tuple(f"{path}." for path in paths)) for axis in left.table)
    assert {(m.tensor, m.dim) for group in left.groups for m in group.members} == set(left.table)
    zeroed = masked(remove(this.model, structure, gone), left, gone)
    assert (
        apart(
            outputs(zeroed, this.inputs), outputs(remove(this.model, structure, gone), this.inputs)
        )
        == 0.0
    )
    once.train()(*this.inputs).pow(2).sum().backward()
    torch.optim.SGD(once.parameters(), lr=1e-9).step()
    stored = io.BytesIO()
    torch.save(once.state_dict(), stored)
    stored.seek(0)
    fresh = rebuild(
        build(name)[0].double(), torch.load(stored), dropped=dropped(structure, channels & gone)
    )
    assert apart(outputs(fresh, this.inputs), outputs(once, this.inputs)) < 1e-14


def test_the_optimizer_forgets_blocks_that_are_gone() -> None:
    this = case("small")
    model, structure = remove(this.model, this.structure, this.structure.full()), this.structure
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    model.train()(*this.inputs).pow(2).sum().backward()
    optimizer.step()
    keep = cut(structure, np.random.default_rng(0), [0], blocks(structure)[:1])
    state = slice_state(by_name(optimizer, model), model, structure, keep)
    assert {k: v["momentum_buffer"].shape for k, v in state.items()} == {
        k: p.shape for k, p in remove(model, structure, keep).named_parameters()
    }


def test_a_plan_may_drop_every_block_but_no_other_group() -> None:
    structure = case("small").structure
    keep = cut(structure, np.random.default_rng(0), [], blocks(structure))
    model = case("small").model
    remove(model, structure, keep)
    keep[structure.groups[0].units] = False
    with pytest.raises(PlanError, match=structure.groups[0].name):
        remove(model, structure, keep)
    with pytest.raises(PlanError, match=r"no \['stages\.9'\]"):
        rebuild(model, {}, dropped=["stages.9"])


class Add(nn.Module):
    """Adds a function of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.inner(self.norm(x))


class Around(nn.Module):
    """A layer before and after `body`, which is called by `call`."""

    def __init__(self, body: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.body, self.after = nn.Linear(3, 4), body, nn.Linear(4, 2)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.call(self.body, self.before(x)))


def found_in(model: nn.Module) -> tuple[list[str], dict[str, str]]:
    structure = discover(model, (torch.randn(2, 3),), depth=True)
    names = [group.name for group in structure.groups if group.kind == "block"]
    return names, {skipped.name: skipped.reason for skipped in structure.skipped}


def test_a_block_is_called_once_with_a_tensor_first_and_shares_nothing() -> None:
    shared = Around(Add(), lambda body, x: body(x))
    shared.body.inner.weight = nn.Parameter(torch.randn(4, 4))
    shared.other = nn.Linear(4, 4)
    shared.other.weight = shared.body.inner.weight
    cases = [
        (Around(Add(), lambda body, x: body(x)), ["body"]),
        (Around(nn.Sequential(Add(), Add()), lambda body, x: body(x)), ["body.0", "body.1"]),
        (Around(Add(), lambda body, x: body(body(x))), []),
        (Around(Add(), lambda body, x: body(x, 2.0)), ["body"]),
        (Around(Add(), lambda body, x: body(x, scale=2.0)), ["body"]),
        (Around(Add(), lambda body, x: body(x, scale=torch.ones(()))), ["body"]),
        (Around(Add(), lambda body, x: -body(x)), ["body"]),
        (Around(nn.Sequential(nn.Linear(4, 4)), lambda body, x: body(x)), []),
        (shared, []),
    ]
    for model, expected in cases:
        assert found_in(model)[0] == expected


class Counting(Add):
    """Counts its calls on what it is called with, which cannot be copied."""

    def forward(self, x: Tensor, calls: Iterator[int]) -> Tensor:  # type: ignore[override]
        next(calls)
        return super().forward(x)


def test_a_block_whose_call_cannot_be_copied_stays() -> None:
    model = Around(Counting(), lambda body, x: body(x, count_up()))
    assert found_in(model)[0] == []


def count_up() -> Iterator[int]:
    yield from range(9)


def test_a_block_that_the_model_looks_into_stays_and_says_why() -> None:
    names, why = found_in(Around(Add(), lambda body, x: body(x) * body.inner.out_features))
    assert names == []
    assert "verification" in why["body"]
    assert "inner" in why["body"]
