"""What is cut: nothing changes but the sizes, and the smaller model is a model like any other."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from models import LARGE, MEDIUM, SMALL, Case, apart, build, case, outputs, plan
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.removal import rebuild, remove

FAST = [*SMALL, *MEDIUM]
ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("name", ALL)
def test_keeping_everything_is_bit_identical_and_shares_nothing(name: str) -> None:
    this = case(name)
    whole = remove(this.model, this.structure, this.structure.full())
    storages = {t.untyped_storage().data_ptr() for t in tensors(this.model).values() if t.numel()}
    for key, tensor in tensors(whole).items():
        assert torch.equal(tensor, tensors(this.model)[key])
        assert tensor.untyped_storage().data_ptr() not in storages
    assert apart(outputs(whole, this.inputs), outputs(this.model, this.inputs)) == 0.0


@pytest.mark.parametrize("name", ALL)
def test_every_mask_exact_group_alone_removed_equals_masked(name: str) -> None:
    this, rng = case(name), np.random.default_rng(0)
    one = tuple(x[:1] for x in this.inputs)
    dense = outputs(this.model, one)
    for index, group in enumerate(this.structure.groups):
        keep = plan(this.structure, rng, [index])
        small = outputs(remove(this.model, this.structure, keep), one)
        assert [t.shape for t in small] == [t.shape for t in dense]
        if group.mask_exact:
            assert apart(small, outputs(masked(this.model, this.structure, keep), one)) < 1e-8, (
                group.name
            )


@pytest.mark.parametrize("name", ALL)
def test_all_mask_exact_groups_jointly_removed_equals_masked(name: str) -> None:
    this, rng = case(name), np.random.default_rng(1)
    exact = [i for i, group in enumerate(this.structure.groups) if group.mask_exact]
    for _ in range(3):
        keep = plan(this.structure, rng, exact)
        small = outputs(remove(this.model, this.structure, keep), this.inputs)
        assert apart(small, outputs(masked(this.model, this.structure, keep), this.inputs)) < 1e-8


@pytest.mark.parametrize("name", ALL)
def test_kept_values_are_bit_identical_with_default_strides(name: str) -> None:
    this = case(name)
    keep = plan(this.structure, np.random.default_rng(2))
    for key, tensor in tensors(remove(this.model, this.structure, keep)).items():
        expected = tensors(this.model)[key]
        for dim in range(expected.dim()):
            row = this.structure.table.get((key, dim))
            if row is not None:
                expected = expected[
                    (slice(None),) * dim + (torch.from_numpy((row < 0) | keep[row]),)
                ]
        assert torch.equal(tensor, expected)
        assert tensor.stride() == torch.empty(tensor.shape).stride()


@pytest.mark.parametrize("name", ALL)
def test_cutting_twice_equals_cutting_once(name: str) -> None:
    this, rng = case(name), np.random.default_rng(3)
    first = plan(this.structure, rng)
    both = first & plan(this.structure, rng)
    for group in this.structure.groups:
        if not both[group.units].any():
            both[group.start + int(np.flatnonzero(first[group.units])[0])] = True
    parent = remove(this.model, this.structure, first)
    chained = remove(parent, this.structure.restrict(first), both)
    once = remove(this.model, this.structure, both)
    assert all(torch.equal(tensors(chained)[key], tensor) for key, tensor in tensors(once).items())
    assert apart(outputs(chained, this.inputs), outputs(once, this.inputs)) == 0.0


@pytest.mark.parametrize("name", ALL)
def test_the_smaller_model_trains_saves_loads_and_copies(name: str) -> None:
    this = case(name)
    keep = plan(this.structure, np.random.default_rng(4))
    small = remove(this.model, this.structure, keep).train()
    _step(small, this)
    stored = io.BytesIO()
    torch.save(small.state_dict(), stored)
    stored.seek(0)
    fresh = rebuild(build(name)[0].double(), torch.load(stored))
    expected = outputs(small, this.inputs)
    assert apart(outputs(fresh, this.inputs), expected) == 0.0
    assert apart(outputs(copy.deepcopy(small), this.inputs), expected) == 0.0
    again = remove(this.model, this.structure, keep)
    again.load_state_dict(small.state_dict())
    assert apart(outputs(again, this.inputs), expected) == 0.0


def _step(model: nn.Module, this: Case) -> None:
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    produced = torch.utils._pytree.tree_leaves(model(*this.inputs))
    torch.stack([t.pow(2).mean() for t in produced if isinstance(t, Tensor)]).sum().backward()
    optimizer.step()
    assert any(not torch.equal(before[key], p) for key, p in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ALL if n not in ("branching", "recurrent")])
def test_the_smaller_model_exports_again(name: str) -> None:
    this = case(name)
    small = remove(this.model, this.structure, plan(this.structure, np.random.default_rng(5)))
    program = torch.export.export(small, this.inputs)
    with torch.no_grad():
        produced = torch.utils._pytree.tree_leaves(program.module()(*this.inputs))
    assert apart(produced, outputs(small, this.inputs)) < 1e-10


def test_attention_with_masks_is_that_of_the_dense_module_when_heads_are_masked() -> None:
    this = case("cross_attention")
    index = next(i for i, g in enumerate(this.structure.groups) if g.kind == "head")
    keep = plan(this.structure, np.random.default_rng(0), [index])
    small = remove(this.model, this.structure, keep).get_submodule("attention")
    dense = masked(this.model, this.structure, keep).get_submodule("attention")
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    for options in (
        {"attn_mask": causal},
        {"key_padding_mask": padding},
        {"attn_mask": causal, "is_causal": True},
    ):
        for need_weights in (False, True):
            got = small.train()(x, x, x, need_weights=need_weights, **options)
            expected = dense.train()(x, x, x, need_weights=need_weights, **options)
            assert torch.allclose(got[0], expected[0])
            assert (got[1] is None) == (expected[1] is None)
    assert torch.allclose(small(x[0], x[0], x[0])[0], dense(x[0], x[0], x[0])[0])


def test_the_fast_path_of_the_encoder_gives_the_same_after_removal() -> None:
    this = case("encoder")
    small = remove(
        this.model, this.structure, plan(this.structure, np.random.default_rng(6))
    ).eval()
    with torch.no_grad():
        assert torch.backends.mha.get_fastpath_enabled()
        assert torch.allclose(small(*this.inputs), outputs(small, this.inputs)[0])


def test_tied_parameters_stay_tied_and_flags_and_hooks_are_kept() -> None:
    this = case("shared")
    model = copy.deepcopy(this.model).train()
    model.first.weight.requires_grad_(False)
    model.alias = model.twice
    calls: list[int] = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    small = remove(model, this.structure, plan(this.structure, np.random.default_rng(0)))
    assert small.alias is small.twice
    assert small.training
    assert not small.first.weight.requires_grad
    assert small.head.weight.requires_grad
    small(*this.inputs)
    assert calls == [1]


def test_plans_that_cannot_be_are_refused_by_name() -> None:
    this = case("flatten")
    with pytest.raises(PlanError, match="one boolean per unit"):
        remove(this.model, this.structure, np.ones(3, dtype=np.bool_))
    empty = this.structure.full()
    empty[this.structure.groups[0].units] = False
    with pytest.raises(PlanError, match="'conv'"):
        remove(this.model, this.structure, empty)
    keep = plan(this.structure, np.random.default_rng(0))
    with pytest.raises(PlanError, match="restrict"):
        remove(remove(this.model, this.structure, keep), this.structure, keep)
    with pytest.raises(PlanError, match="names of the model"):
        rebuild(this.model, {"nowhere.weight": torch.zeros(1)})
    with pytest.raises(PlanError, match="2 dimensions"):
        rebuild(this.model, {"head.weight": torch.zeros(1)})
