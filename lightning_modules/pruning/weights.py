"""Single weights as units: the groups are weight tensors, and a plan ends as one mask per tensor.

The same `Structure` describes them, so that thresholds, schedules, allocation and costs serve both
granularities. Its MACs are effective ones: those of the weights kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

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
    """The granularity of a method that prunes single weights, blocks of them, or by a pattern.

    A tensor is seen as the matrix of its first dimension by all others: (outputs, inputs x kernel).
    `block` prunes blocks of `shape`. Blocks at the edges may be smaller; costs count them as blocks
    of mean size. `pattern` is all or nothing per tensor: with `shape` (n, m) it keeps the best n of
    every m consecutive inputs (the second dimension), for each output and kernel position (Mishra
    et al. 2021 for 2:4).
    Errors: PlanError for a shape that is neither a block nor n < m.
    """

    kind: Literal["weight", "block", "pattern"] = "weight"
    shape: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        first, second = self.shape
        if min(self.shape) < 1 or (self.kind == "pattern" and first >= second):
            raise PlanError(
                "a pattern keeps n of m with 1 <= n < m, a block is at least 1 x 1; "
                f"got {first}, {second}"
            )


def weight_structure(
    structure: Structure, keep: Keep, model: nn.Module, granularity: Weight
) -> Structure:
    """The weight tensors of `model` as groups.

    `structure` is the dense one of units; `keep` is what `model` still has of them. Only tensors
    that MACs go through count. Those that do not fit the pattern are skipped, with the reason.
    """
    macs = macs_by_tensor(structure, keep)
    parameters = dict(model.named_parameters())
    groups: list[Group] = []
    products: list[Product] = []
    params: list[Product] = []
    skipped: list[Skipped] = []
    rest_macs = sum(_size(product, keep) for product in structure.macs)
    rest_params = sum(parameter.numel() for parameter in parameters.values())
    start = 0
    for name, total in macs.items():
        weight = parameters[name]
        reason = structure.whole.get(name) or _misfit(model, name, weight, granularity)
        if reason:
            skipped.append(Skipped(name, reason))
            continue
        size = _unit_count(weight, granularity)
        ids = np.arange(start, start + size, dtype=np.int32)
        groups.append(Group(name, start, size, (), True, _KINDS[granularity.kind]))
        products += _products(name, total, ids, granularity)
        params += _products(name, weight.numel(), ids, granularity)
        rest_macs -= total
        rest_params -= weight.numel()
        start += size
    products.append(Product("rest", rest_macs, ()))
    params.append(Product("rest", rest_params, ()))
    return Structure(
        tuple(groups), {}, tuple(products), tuple(params), tuple(skipped), len(macs), len(groups)
    )


def shares_left(structure: Structure, kept: Counts, granularity: Weight) -> dict[str, float]:
    """The share of the weights that stays of each tensor that loses some.

    `structure` is of tensors; `kept` is the number of units that stay of each.
    """
    n, m = granularity.shape
    left: dict[str, float] = {}
    for group, count in zip(structure.groups, kept, strict=True):
        share = int(count) / group.size
        if granularity.kind == "pattern":
            share = 1.0 if count else n / m
        if share < 1.0:
            left[group.name] = share
    return left


def _products(
    name: str, total: int, ids: npt.NDArray[np.int32], granularity: Weight
) -> list[Product]:
    """A tensor's MACs or elements, `total`, as a function of its units kept.

    Products are whole numbers, so each unit's share is rounded by less than one.
    """
    if granularity.kind == "pattern":
        n, m = granularity.shape
        fixed = total * n // m
        per_unit = total - fixed
        return [Product(name, fixed, (), name), Product(name, per_unit, (ids,), name)]
    per_unit, fixed = divmod(total, len(ids))
    return [Product(name, per_unit, (ids,), name), Product(name, fixed, (), name)]


def _misfit(model: nn.Module, name: str, weight: Tensor, granularity: Weight) -> str:
    """Why a tensor does not take the pattern; empty if it does."""
    if granularity.kind != "pattern":
        return ""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, _ConvTransposeNd):
        return "the inputs of a transposed convolution are not its second dimension"
    inputs = weight.shape[1] if weight.dim() > 1 else 1
    m = granularity.shape[1]
    return f"its {inputs} inputs are no multiple of {m}" if inputs % m else ""


def _unit_count(weight: Tensor, granularity: Weight) -> int:
    if granularity.kind == "pattern":
        return 1
    if granularity.kind == "weight":
        return weight.numel()
    down, across = _blocks(weight, granularity)
    return down * across


def _blocks(weight: Tensor, granularity: Weight) -> tuple[int, int]:
    """Blocks along the rows and along the columns of the matrix, those at the edges included."""
    height, width = granularity.shape
    rows = weight.shape[0]
    columns = weight[0].numel()
    return -(-rows // height), -(-columns // width)


def _block_ids(weight: Tensor, granularity: Weight) -> Tensor:
    """The block of every weight, counted row by row; shape of the weight, int64."""
    height, width = granularity.shape
    _, across = _blocks(weight, granularity)
    block_row = torch.arange(weight.shape[0])[:, None] // height
    block_column = torch.arange(weight[0].numel())[None, :] // width
    return (block_row * across + block_column).reshape(weight.shape)


def unit_scores(weights: Structure, elements: Mapping[str, Tensor], granularity: Weight) -> Scores:
    """Scores per unit from scores per weight.

    A block scores the mean of its weights. A pattern always scores 1.
    """
    scores = np.ones(weights.n_units)
    if granularity.kind != "pattern":
        for group in weights.groups:
            scores[group.units] = shares(elements[group.name], granularity)
    return scores


def shares(values: Tensor, granularity: Weight) -> Scores:
    """The mean of one tensor's values over each of its units; shape (units of the tensor,)."""
    flat = values.detach().double().cpu()
    if granularity.kind == "weight":
        return flat.flatten().numpy()
    ids = _block_ids(flat, granularity).flatten()
    total = torch.zeros(int(ids[-1]) + 1, dtype=torch.float64)
    total.index_add_(0, ids, flat.flatten())
    means: Scores = (total / torch.bincount(ids)).numpy()
    return means


def masks_of(
    weights: Structure, keep: Keep, elements: Mapping[str, Tensor], granularity: Weight
) -> Masks:
    """One mask for each tensor that loses weights.

    `elements` are the scores per weight; a pattern is chosen by them.
    """
    masks: Masks = {}
    for group in weights.groups:
        if keep[group.units].all():
            continue
        scores = elements[group.name]
        kept_units = torch.tensor(keep[group.units])
        if granularity.kind == "weight":
            mask = kept_units.reshape(scores.shape)
        elif granularity.kind == "block":
            mask = kept_units[_block_ids(scores, granularity)]
        else:
            mask = best_of(scores.detach(), *granularity.shape)
        masks[group.name] = mask.to(scores.device)
    return masks


def best_of(scores: Tensor, n: int, m: int) -> Tensor:
    """True for the n highest of every m consecutive inputs (dim 1); shape of `scores`.

    Of equal scores the earlier one is kept.
    """
    inputs_last = scores.movedim(1, -1)
    blocks = inputs_last.reshape(*inputs_last.shape[:-1], -1, m)
    order = torch.argsort(blocks, dim=-1, descending=True, stable=True)
    best = order[..., :n]
    chosen = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, best, True)
    return chosen.flatten(-2).movedim(-1, 1).contiguous()


def apply(model: nn.Module, masks: Masks) -> None:
    """Zero, in place, every weight not kept."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)


def zeros_of(model: nn.Module, names: Iterable[str]) -> Masks:
    """The masks of those tensors among `names` that have zeros, with the zeros as pruned."""
    parameters = dict(model.named_parameters())
    masks: Masks = {}
    for name in names:
        if name not in parameters:
            continue
        nonzero = parameters[name].detach() != 0
        if not bool(nonzero.all()):
            masks[name] = nonzero
    return masks


def macs_by_tensor(structure: Structure, keep: Keep) -> dict[str, int]:
    """MACs at batch 1 of each parameter in the model that `keep` leaves, in the graph's order.

    Parameters that no MACs go through are left out.
    """
    macs: dict[str, int] = {}
    for product in structure.macs:
        if product.tensor:
            macs[product.tensor] = macs.get(product.tensor, 0) + _size(product, keep)
    return {name: total for name, total in macs.items() if total}


def effective_macs(structure: Structure, keep: Keep, density: Mapping[str, float]) -> int:
    """MACs weighted by the share of nonzero weights, or weights and activations, of each tensor.

    They are theoretical. `density` maps parameters to fractions in [0, 1]. Parameters that it does
    not name, and products of two activations, count in full.
    """
    weighted = []
    for product in structure.macs:
        weighted.append(_size(product, keep) * density.get(product.tensor, 1.0))
    return round(sum(weighted))


def densities(model: nn.Module, names: Iterable[str]) -> dict[str, float]:
    """The share of nonzero weights of each parameter."""
    parameters = dict(model.named_parameters())
    shares = {}
    for name in names:
        if name in parameters:
            parameter = parameters[name]
            shares[name] = float(torch.count_nonzero(parameter)) / parameter.numel()
    return shares


def _size(product: Product, keep: Keep) -> int:
    """What a product comes to in the model that `keep` leaves."""
    total = product.constant
    for row in product.factors:
        total *= int(((row < 0) | keep[row]).sum())
    return total
