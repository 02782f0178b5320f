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
    """The mean over coupled layers, of which each row has one value per unit.

    Errors: PlanError for a group without any row.
    """
    if not rows:
        raise PlanError(
            "a criterion needs a producing weight that it can score; group "
            f"'{group.name}' has none: its weights are no parameters, or the loss does not reach "
            "them (detach, or heads that run in training only); build the model without, or take a "
            "criterion on weights alone"
        )
    mean: Scores = np.mean(np.array(rows), axis=0)
    return mean


def per_group(structure: Structure, rows: Callable[[Group], Sequence[Scores]]) -> Scores:
    """Scores, shape (n_units,), from the rows of each group, shape (layers, group.size).

    Whole blocks score 0.
    """
    scores = np.zeros(structure.n_units)
    for group in structure.groups:
        if group.members:
            scores[group.units] = combined(group, rows(group))
    return scores


def producing(group: Group, tensors: Mapping[str, Tensor], dims: int = 2) -> list[Member]:
    """The members among `tensors` that produce the units.

    They have at least `dims` dimensions: 2 gives weights alone, 1 also biases.
    """
    members = []
    for member in group.members:
        if member.role != "out" or member.tensor not in tensors:
            continue
        if tensors[member.tensor].dim() >= dims:
            members.append(member)
    return members


def producing_names(
    structure: Structure, tensors: Mapping[str, Tensor], dims: int = 2
) -> list[str]:
    """The names of all tensors that `producing` gives for any group, each once."""
    names: dict[str, None] = {}
    for group in structure.groups:
        for member in producing(group, tensors, dims):
            names[member.tensor] = None
    return list(names)


def per_unit(
    structure: Structure, group: Group, member: Member, values: Tensor, reduction: str = "sum"
) -> Scores:
    """`values`, of the shape of the member's tensor, summed over each unit; shape (group.size,).

    The `reduction` "max" takes each unit's maximum instead. A packed tensor holds a unit several
    times (four gates; query, key and value): all its places count.
    """
    row = structure.table[member.tensor, member.dim]
    flat = values.detach().double().movedim(member.dim, 0).reshape(len(row), -1)
    if reduction == "max":
        per_position = flat.amax(1)
        gather = np.maximum.at
    else:
        per_position = flat.sum(1)
        gather = np.add.at
    in_group = group.among(row)
    units = row[in_group] - group.start
    result = np.zeros(group.size)
    # a value that is not a number stays one: the check of the scores names it
    with np.errstate(invalid="ignore"):
        gather(result, units, per_position.cpu().numpy()[in_group])
    return result


def unit_sums(structure: Structure, values: Mapping[str, Tensor]) -> Scores:
    """Values per weight, summed over each unit of each producing weight, then combined.

    Shape (n_units,).
    """

    def rows(group: Group) -> list[Scores]:
        sums = []
        for member in producing(group, values):
            sums.append(per_unit(structure, group, member, values[member.tensor]))
        return sums

    return per_group(structure, rows)


def layer_sums(
    structure: Structure, group: Group, values: Mapping[str, Tensor]
) -> dict[str, Scores]:
    """Per layer of the group, by name, the sum over each unit's elements.

    These are those of its weight and bias, or of its norm's scale and shift.
    """
    rows: dict[str, Scores] = {}
    for member in producing(group, values, dims=1):
        layer = member.tensor.rpartition(".")[0]
        sums = per_unit(structure, group, member, values[member.tensor])
        rows[layer] = rows.get(layer, 0.0) + sums
    return rows


def occurrences(
    row: npt.NDArray[np.int32], group: Group
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The living units of the group and the positions of each in `row`.

    Units are offsets into the group, shape (n,); positions have shape (n, times). Column k is the
    k-th occurrence of every unit, so that columns can be compared.
    """
    places = np.flatnonzero(group.among(row))
    units = np.unique(row[places])
    by_unit = places[np.argsort(row[places], kind="stable")]
    times = len(places) // max(len(units), 1)
    offsets = (units - group.start).astype(np.intp)
    return offsets, by_unit.reshape(len(units), times)


def vectors(
    structure: Structure, group: Group, axis: Axis, weight: Tensor
) -> tuple[npt.NDArray[np.intp], Tensor]:
    """The living units of the group, as offsets into it, and their weights as rows.

    The weights are double, of shape (n, weights per unit).
    """
    units, places = occurrences(structure.table[axis], group)
    index = torch.from_numpy(places).to(weight.device)
    by_position = weight.detach().double().movedim(axis[1], 0).flatten(1)
    return units, by_position[index].flatten(1)


def living(structure: Structure) -> Keep:
    """The units that the table still holds, which a pruned model still has; shape (n_units,)."""
    alive = np.zeros(structure.n_units, dtype=np.bool_)
    for row in structure.table.values():
        alive[row[row >= 0]] = True
    return alive


def named(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Floating-point parameters by name.

    Errors: PlanError for names that the model does not have.
    """
    known = floating(model)
    names = list(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise PlanError(
            "weights to score must be floating-point parameters of the model; it has no "
            f"{unknown[:5]}; take names from model.named_parameters()"
        )
    return {name: known[name] for name in names}


def floating(model: nn.Module) -> dict[str, nn.Parameter]:
    """All floating-point parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


def as_scores(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values per weight in the precision of the weights, at least single."""
    parameters = named(model, values)
    scores = {}
    for name, value in values.items():
        dtype = torch.promote_types(parameters[name].dtype, torch.float32)
        scores[name] = value.detach().to(dtype)
    return scores
