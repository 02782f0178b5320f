"""Masks zero both sides of a unit and nothing else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from models import apart, case, outputs, plan

from lightning_modules.errors import PlanError
from lightning_modules.pruning.masks import masked, zero
from lightning_modules.pruning.removal import remove


def test_every_slice_of_a_dropped_unit_is_zero_and_no_other() -> None:
    this = case("unet")
    keep = plan(this.structure, np.random.default_rng(0))
    before, after = this.model.state_dict(), masked(this.model, this.structure, keep).state_dict()
    for name, tensor in before.items():
        expected = tensor.clone()
        for dim in range(tensor.dim()):
            row = this.structure.table.get((name, dim))
            if row is not None:
                dropped = torch.from_numpy((row >= 0) & ~keep[row])
                expected[(slice(None),) * dim + (dropped,)] = 0
        assert torch.equal(after[name], expected)


def test_masks_on_a_smaller_model_use_the_ids_of_the_dense_one() -> None:
    this, rng = case("resnet18"), np.random.default_rng(1)
    parent = plan(this.structure, rng)
    small, inner = remove(this.model, this.structure, parent), this.structure.restrict(parent)
    keep = parent & plan(this.structure, rng)
    for group in this.structure.groups:
        if not keep[group.units].any():
            keep[group.start + int(np.flatnonzero(parent[group.units])[0])] = True
    zeroed = masked(small, inner, keep)
    assert (
        apart(outputs(zeroed, this.inputs), outputs(remove(small, inner, keep), this.inputs)) < 1e-8
    )


def test_zeroing_is_in_place_and_keeping_everything_changes_nothing() -> None:
    this = case("flatten")
    model = copy.deepcopy(this.model)
    address = model.conv.weight.data_ptr()
    zero(model, this.structure, this.structure.full())
    assert torch.equal(model.conv.weight, this.model.conv.weight)
    zero(model, this.structure, plan(this.structure, np.random.default_rng(0)))
    assert model.conv.weight.data_ptr() == address
    assert not torch.equal(model.conv.weight, this.model.conv.weight)


def test_a_mask_of_another_model_is_refused() -> None:
    this = case("flatten")
    with pytest.raises(PlanError, match="one boolean per unit"):
        zero(copy.deepcopy(this.model), this.structure, np.ones(2, dtype=np.bool_))
