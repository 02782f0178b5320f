"""Watches what flows into the weights that consume units, and out of those that produce them."""

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

Row = npt.NDArray[np.int32]
Sink = Callable[[Axis, Row, Tensor], None]
"""Called with the axis of the weight, the unit id per position (-1 = none), and activations of shape
(samples, positions, ...extent)."""

_aten = torch.ops.aten


def observe(model: nn.Module, structure: Structure, calibration: Calibration, sink: Sink) -> None:
    """Hands over, for all batches, the activations of every unit as its consumers see them.

    That is behind norm and nonlinearity, in whatever module or function the multiplication happens. Units that no
    visible weight consumes (queries and keys meet each other only) are seen as their producers put them out.
    Errors: PlanError for a group that is seen nowhere.
    """
    groups = [group for group in structure.groups if group.members]
    with scoring(model, calibration.seed), torch.no_grad():
        for role in ("in", "out"):
            axes = {(m.tensor, m.dim) for group in groups for m in group.members if m.role == role}
            mine = _only(structure, groups, axes)
            watch = _Watch(model, mine, consumed=role == "in", sink=sink)
            with watch:
                for batch in require_batches(calibration):
                    calibration.loss(model, batch)
            groups = [
                g for g in groups if not any((m.tensor, m.dim) in watch.seen for m in g.members)
            ]
            if not groups:
                return
    raise PlanError(
        f"activations are tapped at convolutions and matrix products with a parameter; group '{groups[0].name}' passes "
        "none that can be seen (weights computed in forward, or heads that run in training only); build the model "
        "without, or take a criterion on weights alone"
    )


def _only(structure: Structure, groups: Iterable[Group], axes: Iterable[Axis]) -> dict[Axis, Row]:
    """Rows of the table in which the units of other groups are -1."""
    wanted = np.zeros(structure.n_units, dtype=np.bool_)
    for group in groups:
        wanted[group.units] = True
    rows = {axis: structure.table[axis] for axis in axes}
    return {
        axis: np.where((row >= 0) & wanted[row], row, -1).astype(np.int32)
        for axis, row in rows.items()
    }


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator below the modules and the functional layer, and knows weights by where they are stored.

    So views (slices, transposes) are recognised, and attention's projections inside composite functions.
    """

    def __init__(
        self, model: nn.Module, rows: Mapping[Axis, Row], consumed: bool, sink: Sink
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[Axis] = set()
        self._rows, self._consumed, self._sink = rows, consumed, sink
        self._weights: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        names = {name for name, _ in rows}
        for name, parameter in model.named_parameters():
            if name in names:
                self._weights[parameter.untyped_storage().data_ptr()].append((name, parameter))

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
            into, produced = (0, 1) if args[6] else (1, 0)
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
        """`into` and `produced` are the weight's axes, `channel` is the axis of the activations that they meet."""
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
        self._sink((name, dim), row, values if channel == 1 else _samples_first(values, channel))

    def _axis(self, view: Tensor, dim: int | None) -> tuple[str, int, int] | None:
        """(parameter, its dimension, first position) that dimension `dim` of `view` runs along, if it is watched."""
        if dim is None or view.dim() < 2 or view.shape[dim] == 1:
            return None
        for name, parameter in self._weights.get(view.untyped_storage().data_ptr(), ()):
            offset = view.storage_offset() - parameter.storage_offset()
            if not 0 <= offset < parameter.numel():
                continue
            for own, (size, stride) in enumerate(
                zip(parameter.shape, parameter.stride(), strict=True)
            ):
                if size > 1 and stride == view.stride(dim) and (name, own) in self._rows:
                    return name, own, int(offset // stride % size)
        return None


def _samples_first(values: Tensor, channel: int) -> Tensor:
    """(anything, positions) from any number of dimensions."""
    moved = values.movedim(channel, -1)
    return moved.reshape(-1, moved.shape[-1])
