"""From values per element of the producing tensors to one score per unit, across coupled layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_modules.errors import PlanError
from lightning_modules.pruning.structure import Axis, Group, Keep, Member, Structure
from lightning_modules.pruning.thresholds import Scores


def combined(group: Group, rows: Sequence[Scores]) -> Scores:
    """The mean over coupled layers of one value per unit each. Errors: PlanError for a group without any row."""
    if not rows:
        raise PlanError(
            f"a criterion needs a producing weight that it can score; group '{group.name}' has none: its weights are "
            "no parameters, or the loss does not reach them (detach, or heads that run in training only); build the "
            "model without, or take a criterion on weights alone"
        )
    mean: Scores = np.mean(np.array(rows), axis=0)
    return mean


def per_group(structure: Structure, rows: Callable[[Group], Sequence[Scores]]) -> Scores:
    """Scores, shape (n_units,), from the rows of each group, shape (layers, group.size); whole blocks get 0."""
    scores = np.zeros(structure.n_units)
    for group in structure.groups:
        if group.members:
            scores[group.units] = combined(group, rows(group))
    return scores


def producing(group: Group, tensors: Mapping[str, Tensor], dims: int = 2) -> list[Member]:
    """The members among `tensors` that make the units: weights of at least `dims` dimensions, with 1 biases too."""
    return [
        m
        for m in group.members
        if m.role == "out" and m.tensor in tensors and tensors[m.tensor].dim() >= dims
    ]


def producing_names(
    structure: Structure, tensors: Mapping[str, Tensor], dims: int = 2
) -> list[str]:
    """Names of all tensors that `producing` finds in any group, each once."""
    return list(
        dict.fromkeys(
            m.tensor for group in structure.groups for m in producing(group, tensors, dims)
        )
    )


def per_unit(
    structure: Structure, group: Group, member: Member, values: Tensor, how: str = "sum"
) -> Scores:
    """`values`, shaped like the member's tensor, summed over each unit (or its `max`); shape (group.size,).

    A packed tensor holds a unit several times (four gates, query, key and value): all its places count.
    """
    row = structure.table[member.tensor, member.dim]
    flat = values.detach().double().movedim(member.dim, 0).reshape(len(row), -1)
    per_position = (flat.amax(1) if how == "max" else flat.sum(1)).cpu().numpy()
    mine = (row >= group.start) & (row < group.start + group.size)
    result = np.zeros(group.size)
    gather = np.maximum.at if how == "max" else np.add.at
    with np.errstate(
        invalid="ignore"
    ):  # what is not a number stays so: the check of the scores names it
        gather(result, row[mine] - group.start, per_position[mine])
    return result


def unit_sums(structure: Structure, values: Mapping[str, Tensor]) -> Scores:
    """Values per weight summed over each unit of each producing weight, then combined; shape (n_units,)."""

    def rows(group: Group) -> list[Scores]:
        return [per_unit(structure, group, m, values[m.tensor]) for m in producing(group, values)]

    return per_group(structure, rows)


def layer_sums(
    structure: Structure, group: Group, values: Mapping[str, Tensor]
) -> dict[str, Scores]:
    """Per layer of the group, by name, the sum over each unit of its weight and bias, or norm scale and shift."""
    rows: dict[str, Scores] = {}
    for member in producing(group, values, dims=1):
        layer = member.tensor.rpartition(".")[0]
        rows[layer] = rows.get(layer, 0.0) + per_unit(
            structure, group, member, values[member.tensor]
        )
    return rows


def occurrences(
    row: npt.NDArray[np.int32], group: Group
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Living units of the group (offsets into it), shape (n,), and where each stands in `row`, shape (n, times).

    Column k is the k-th occurrence of every unit, so that columns can be compared.
    """
    places = np.flatnonzero((row >= group.start) & (row < group.start + group.size))
    units = np.unique(row[places])
    order = np.argsort(row[places], kind="stable")
    return (units - group.start).astype(np.intp), places[order].reshape(
        len(units), len(places) // max(len(units), 1)
    )


def vectors(
    structure: Structure, group: Group, axis: Axis, weight: Tensor
) -> tuple[npt.NDArray[np.intp], Tensor]:
    """Living units (offsets into the group) and their weights as rows, shape (n, weights per unit), double."""
    units, places = occurrences(structure.table[axis], group)
    index = torch.from_numpy(places).to(weight.device)
    return units, weight.detach().double().movedim(axis[1], 0).flatten(1)[index].flatten(1)


def living(structure: Structure) -> Keep:
    """The units that stand anywhere in the table: those a pruned model still has; shape (n_units,)."""
    alive = np.zeros(structure.n_units, dtype=np.bool_)
    for row in structure.table.values():
        alive[row[row >= 0]] = True
    return alive


def named(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Floating-point parameters by name. Errors: PlanError for names the model does not have."""
    known = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    names = list(names)
    if unknown := [name for name in names if name not in known]:
        raise PlanError(
            f"weights to score must be floating-point parameters of the model; it has no {unknown[:5]}; "
            "take names from model.named_parameters()"
        )
    return {name: known[name] for name in names}


def as_scores(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values per weight in the precision of the weights, at least single."""
    parameters = named(model, values)
    return {
        n: v.detach().to(torch.promote_types(parameters[n].dtype, torch.float32))
        for n, v in values.items()
    }
