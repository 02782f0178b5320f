"""Records the activations that flow into weights that consume units, or out of producing ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.errors import PlanError
from lightning_modules.pruning.criteria.contract import Calibration
from lightning_modules.pruning.criteria.gradients import require_batches
from lightning_modules.pruning.criteria.scoring import scoring
from lightning_modules.pruning.structure import Axis, Group, Structure

UnitRow = npt.NDArray[np.int32]
"""The unit id per position of an axis, -1 = none."""
Sink = Callable[[Axis, UnitRow, Tensor], None]
"""Called with the axis of a weight, its row, and activations (samples, positions, ...extent)."""

_aten = torch.ops.aten


def observe(model: nn.Module, structure: Structure, calibration: Calibration, sink: Sink) -> None:
    """Call `sink`, for all batches, with the activations of every unit as its consumers see them.

    That is behind norm and nonlinearity, in whatever module or function the multiplication happens.
    Units that no visible weight consumes are seen as their producers put them out: queries and keys
    only meet each other.
    Errors: PlanError for a group that is seen nowhere.
    """
    groups = [group for group in structure.groups if group.members]
    with scoring(model, calibration.seed), torch.no_grad():
        for role in ("in", "out"):
            rows = _rows(structure, groups, role)
            watch = _Watch(model, rows, consumed=role == "in", sink=sink)
            with watch:
                for batch in require_batches(calibration):
                    calibration.loss(model, batch)
            groups = [group for group in groups if not _is_seen(group, watch.seen)]
            if not groups:
                return
    raise PlanError(
        "activations are tapped at convolutions and matrix products with a parameter; group "
        f"'{groups[0].name}' passes none that can be seen (weights computed in forward, or heads "
        "that run in training only); build the model without, or take a criterion on weights alone"
    )


def _is_seen(group: Group, axes: set[Axis]) -> bool:
    return any((member.tensor, member.dim) in axes for member in group.members)


def _rows(structure: Structure, groups: Iterable[Group], role: str) -> dict[Axis, UnitRow]:
    """Rows of the axes that have that role in one of the groups; units of other groups are -1."""
    wanted = np.zeros(structure.n_units, dtype=np.bool_)
    axes: dict[Axis, None] = {}
    for group in groups:
        wanted[group.units] = True
        for member in group.members:
            if member.role == role:
                axes[member.tensor, member.dim] = None
    rows = {}
    for axis in axes:
        row = structure.table[axis]
        rows[axis] = np.where((row >= 0) & wanted[row], row, -1).astype(np.int32)
    return rows


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator below modules and functional layer, and knows weights by their storage.

    So it recognises views (slices, transposes), and attention's projections inside of composite
    functions.
    """

    def __init__(
        self, model: nn.Module, rows: Mapping[Axis, UnitRow], consumed: bool, sink: Sink
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[Axis] = set()
        self._rows = rows
        self._consumed = consumed
        self._sink = sink
        self._weights: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        names = {name for name, _ in rows}
        for name, parameter in model.named_parameters():
            if name in names:
                storage = parameter.untyped_storage().data_ptr()
                self._weights[storage].append((name, parameter))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is _aten.convolution:
            transposed = args[6]
            into, produced = (0, 1) if transposed else (1, 0)
            self._tap(args[1], into, produced, args[0], out, 1)
        elif packet is _aten.linear:
            self._tap(args[1], 1, 0, args[0], out, -1)
        elif packet in (_aten.mm, _aten.bmm):
            self._multiply(args[0], args[1], out)
        elif packet in (_aten.addmm, _aten.baddbmm):
            self._multiply(args[1], args[2], out)
        elif packet is _aten.embedding:
            self._tap(args[0], None, 1, None, out, -1)
        return out

    def _multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        self._tap(right, -2, -1, left, out, -1)
        self._tap(left, -1, -2, right, out, -2)

    def _tap(
        self,
        weight: Tensor,
        into: int | None,
        produced: int,
        x: Tensor | None,
        out: Tensor,
        channel: int,
    ) -> None:
        """Call the sink if the weight is one of those watched.

        `into` and `produced` are the weight's axes; `channel` is the axis of the activations that
        meets them.
        """
        values = x if self._consumed else out
        axis = self._axis(weight, into if self._consumed else produced)
        if values is None or axis is None:
            return
        name, dim, start = axis
        size = values.shape[channel]
        row = self._rows[name, dim][start : start + size]
        if len(row) != size:
            return
        self.seen.add((name, dim))
        if channel != 1:
            values = _samples_first(values, channel)
        self._sink((name, dim), row, values)

    def _axis(self, view: Tensor, dim: int | None) -> tuple[str, int, int] | None:
        """The watched axis that dimension `dim` of `view` runs along.

        It is given as (parameter, its dimension, first position).
        """
        if dim is None or view.dim() < 2 or view.shape[dim] == 1:
            return None
        view_stride = view.stride(dim)
        storage = view.untyped_storage().data_ptr()
        for name, parameter in self._weights.get(storage, ()):
            offset = view.storage_offset() - parameter.storage_offset()
            if not 0 <= offset < parameter.numel():
                continue
            for own_dim, size in enumerate(parameter.shape):
                stride = parameter.stride(own_dim)
                if size > 1 and stride == view_stride and (name, own_dim) in self._rows:
                    return name, own_dim, int(offset // stride % size)
        return None


def _samples_first(values: Tensor, channel: int) -> Tensor:
    """(anything, positions) from any number of dimensions."""
    moved = values.movedim(channel, -1)
    return moved.reshape(-1, moved.shape[-1])
