"""Single weights as units: the groups are weight tensors, and a plan ends as one boolean mask per tensor.

The same `Structure` describes them, so that thresholds, schedules, allocation and costs serve both granularities. Its
MACs are effective: those of the weights kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.structure import (
    Counts,
    Group,
    Keep,
    Kind,
    Product,
    Skipped,
    Structure,
)
from lightning_modules.pruning.thresholds import Scores

Masks = dict[str, Tensor]
"""Parameter name -> boolean of its shape, True = keep."""
_KINDS: dict[str, Kind] = {"weight": "weight", "block": "weight_block", "pattern": "pattern"}


@dataclass(frozen=True)
class Weight:
    """Single weights, `shape` blocks of the matrix (outputs, inputs x kernel), or a pattern: N of M along the inputs.

    The matrix is the first dimension of a tensor by all others. Blocks at its edge may be smaller; costs count them as
    a block of mean size. A pattern is all or nothing per tensor: it keeps the best n of every m consecutive inputs (the
    second dimension), for each output and kernel position (Mishra et al. 2021 for 2:4).
    """

    kind: Literal["weight", "block", "pattern"] = "weight"
    shape: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        first, second = self.shape
        if min(self.shape) < 1 or (self.kind == "pattern" and first >= second):
            raise PlanError(
                f"a pattern keeps n of m with 1 <= n < m, a block is at least 1 x 1; got {first}, {second}"
            )


def weight_structure(structure: Structure, keep: Keep, model: nn.Module, how: Weight) -> Structure:
    """The weight tensors of `model` as groups; `structure` is the dense one of units and `keep` what `model` still has.

    Only tensors that MACs go through count. Those that do not fit the pattern are skipped with the reason.
    """
    macs = macs_by_tensor(structure, keep)
    parameters = dict(model.named_parameters())
    groups: list[Group] = []
    products: list[Product] = []
    params: list[Product] = []
    skipped: list[Skipped] = []
    start = 0
    for name, total in macs.items():
        weight = parameters[name]
        if reason := _misfit(model, name, weight, how):
            skipped.append(Skipped(name, reason))
            continue
        size = _unit_count(weight, how)
        ids = np.arange(start, start + size, dtype=np.int32)
        groups.append(Group(name, start, size, (), True, _KINDS[how.kind]))
        products += _products(name, total, ids, how)
        params += _products(name, weight.numel(), ids, how)
        start += size
    rest_macs = sum(_size(product, keep) for product in structure.macs) - sum(
        macs[group.name] for group in groups
    )
    rest = sum(p.numel() for p in parameters.values()) - sum(
        parameters[group.name].numel() for group in groups
    )
    products.append(Product("rest", rest_macs, ()))
    params.append(Product("rest", rest, ()))
    return Structure(
        tuple(groups), {}, tuple(products), tuple(params), tuple(skipped), len(macs), len(groups)
    )


def shares_left(structure: Structure, kept: Counts, how: Weight) -> dict[str, float]:
    """Share of the weights that stays of each tensor that loses some, by its units kept; `structure` is of tensors."""
    n, m = how.shape
    left: dict[str, float] = {}
    for group, count in zip(structure.groups, kept, strict=True):
        share = int(count) / group.size
        if how.kind == "pattern":
            share = 1.0 if count else n / m
        if share < 1.0:
            left[group.name] = share
    return left


def _products(name: str, total: int, ids: npt.NDArray[np.int32], how: Weight) -> list[Product]:
    """A tensor's MACs, or its elements, by its units kept; whole numbers, so rounded by less than one per unit."""
    if how.kind != "pattern":
        per_unit, rest = divmod(total, len(ids))
        return [Product(name, per_unit, (ids,), name), Product(name, rest, (), name)]
    sparse = total * how.shape[0] // how.shape[1]
    return [Product(name, sparse, (), name), Product(name, total - sparse, (ids,), name)]


def _misfit(model: nn.Module, name: str, weight: Tensor, how: Weight) -> str:
    """Why a tensor does not take the pattern, "" if it does."""
    if how.kind != "pattern":
        return ""
    if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.modules.conv._ConvTransposeNd):
        return "the inputs of a transposed convolution are not its second dimension"
    inputs = weight.shape[1] if weight.dim() > 1 else 1
    return f"its {inputs} inputs are no multiple of {how.shape[1]}" if inputs % how.shape[1] else ""


def _unit_count(weight: Tensor, how: Weight) -> int:
    if how.kind == "pattern":
        return 1
    if how.kind == "weight":
        return weight.numel()
    rows, columns = weight.shape[0], weight[0].numel()
    return -(-rows // how.shape[0]) * -(-columns // how.shape[1])


def _block_ids(weight: Tensor, how: Weight) -> Tensor:
    """The block of every weight, counted row by row; shape of the weight, int64."""
    rows, columns = weight.shape[0], weight[0].numel()
    across = -(-columns // how.shape[1])
    row, column = (
        torch.arange(rows)[:, None] // how.shape[0],
        torch.arange(columns)[None, :] // how.shape[1],
    )
    return (row * across + column).reshape(weight.shape)


def unit_scores(weights: Structure, elements: Mapping[str, Tensor], how: Weight) -> Scores:
    """Scores per unit from scores per weight: a block's is the mean of its weights, a pattern is always worth 1."""
    scores = np.ones(weights.n_units)
    if how.kind != "pattern":
        for group in weights.groups:
            scores[group.units] = shares(elements[group.name], how)
    return scores


def shares(values: Tensor, how: Weight) -> Scores:
    """Mean over each unit of one tensor's values; shape (units of the tensor,)."""
    flat = values.detach().double().cpu()
    if how.kind == "weight":
        return flat.flatten().numpy()
    ids = _block_ids(flat, how).flatten()
    total = torch.zeros(int(ids[-1]) + 1, dtype=torch.float64).index_add_(0, ids, flat.flatten())
    means: Scores = (total / torch.bincount(ids)).numpy()
    return means


def masks_of(weights: Structure, keep: Keep, elements: Mapping[str, Tensor], how: Weight) -> Masks:
    """One mask per tensor that loses something; `elements` are the scores per weight that a pattern is chosen by."""
    masks: Masks = {}
    for group in weights.groups:
        if keep[group.units].all():
            continue
        like, mine = elements[group.name], torch.tensor(keep[group.units])
        if how.kind == "weight":
            mask = mine.reshape(like.shape)
        elif how.kind == "block":
            mask = mine[_block_ids(like, how)]
        else:
            mask = best_of(like.detach(), *how.shape)
        masks[group.name] = mask.to(like.device)
    return masks


def best_of(scores: Tensor, n: int, m: int) -> Tensor:
    """True for the n highest of every m consecutive inputs (dim 1); shape of `scores`. Ties go to the earlier one."""
    last = scores.movedim(1, -1)
    blocks = last.reshape(*last.shape[:-1], -1, m)
    order = torch.argsort(blocks, dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return chosen.flatten(-2).movedim(-1, 1).contiguous()


def apply(model: nn.Module, masks: Masks) -> None:
    """Zero, in place, every weight not kept."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)


def zeros_of(model: nn.Module, names: Iterable[str]) -> Masks:
    """The masks that a pruned model shows by its zeros, for those of `names` that have any."""
    parameters = dict(model.named_parameters())
    found = {name: parameters[name].detach() != 0 for name in names if name in parameters}
    return {name: mask for name, mask in found.items() if not bool(mask.all())}


def macs_by_tensor(structure: Structure, keep: Keep) -> dict[str, int]:
    """MACs at batch 1 of each parameter that MACs go through, in the model that `keep` leaves; in the graph's order."""
    found: dict[str, int] = {}
    for product in structure.macs:
        if product.tensor:
            found[product.tensor] = found.get(product.tensor, 0) + _size(product, keep)
    return {name: total for name, total in found.items() if total}


def effective_macs(structure: Structure, keep: Keep, density: Mapping[str, float]) -> int:
    """MACs weighted by the share of nonzero weights (or weights and activations) of each tensor; theoretical.

    `density` maps parameters to fractions in [0, 1]; what it does not name, products of two activations too, counts
    in full.
    """
    return round(
        sum(_size(product, keep) * density.get(product.tensor, 1.0) for product in structure.macs)
    )


def densities(model: nn.Module, names: Iterable[str]) -> dict[str, float]:
    """Share of nonzero weights of each parameter."""
    parameters = dict(model.named_parameters())
    return {
        name: float(torch.count_nonzero(parameters[name])) / parameters[name].numel()
        for name in names
        if name in parameters
    }


def _size(product: Product, keep: Keep) -> int:
    total = product.constant
    for row in product.factors:
        total *= int(((row < 0) | keep[row]).sum())
    return total
