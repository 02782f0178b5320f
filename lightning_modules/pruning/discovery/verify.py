"""Tries every group on randomised parameters; what does not behave as the table says is frozen, with the reason."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_modules.pruning.depth import droppable
from lightning_modules.pruning.discovery.assemble import assemble
from lightning_modules.pruning.discovery.trace import Trace
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.masks import zero
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Skipped, Structure, inside

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest difference between removed and masked outputs, relative to the largest output."""


def verify(trace: Trace, inputs: Inputs, depth: bool = False, seed: int = 0) -> Structure:
    """The structure of which every group passed, alone or with all others; failing groups are frozen in `trace`.

    With `depth`, residual blocks that can go as a whole are looked for and tried too, then all of them with channels.

    A `mask_exact` group passes if removing random units gives what zeroing them gives; any other if the smaller
    model runs with finite outputs of the same shapes. Runs inside `undisturbed`, which restores the random state.
    """
    structure = assemble(trace)
    trial = _Trial(trace, inputs, seed)
    while structure.groups:
        failures = trial.failures(structure, range(len(structure.groups)))
        if not failures:
            break
        for index, reason in failures.items():
            units = structure.groups[index].units
            for axis, row in structure.table.items():
                hit = (row >= units.start) & (row < units.stop)
                trace.labels.freeze(trace.axes[axis][hit], reason)
        structure = assemble(trace)
    return _blocks(trace, trial) if depth else structure


def _blocks(trace: Trace, trial: _Trial) -> Structure:
    """The structure with all blocks that hold MACs and passed; the others are noted with the reason."""
    for path in trial.droppable():
        if any(inside(raw.path, [path]) for raw in trace.products):
            trace.blocks[path] = None
    structure = assemble(trace)
    names = {
        group.name: index for index, group in enumerate(structure.groups) if group.kind != "block"
    }
    found = [index for index, group in enumerate(structure.groups) if group.kind == "block"]
    failures = {i: "a layer has the same name" for i in found if structure.groups[i].name in names}
    failures |= trial.failures(structure, [i for i in found if i not in failures]) if found else {}
    left = [i for i in found if i not in failures]
    together = trial.fault(structure, [*names.values(), *left[::2]]) if left else None
    if together is not None:
        failures |= {i: f"verification, jointly with channels: {together}" for i in left}
    for index, reason in failures.items():
        path = structure.groups[index].name
        del trace.blocks[path]
        trace.notes.setdefault(Skipped(path, reason))
    return assemble(trace)


class _Trial:
    """A randomised copy of the model, its outputs, and random plans tried on it."""

    def __init__(self, trace: Trace, inputs: Inputs, seed: int) -> None:
        self._trained = trace.trained
        self._random = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        # Double precision separates a wrong tie from rounding; a model that insists on float gets float.
        for dtype in (torch.float64, torch.float32):
            self._dtype = dtype
            self._model = randomised(trace.model, generator).to(dtype)
            self._inputs = inputs.map(partial(_noise, dtype=dtype, generator=generator))
            try:
                self._dense = self._run(self._model)
                return
            except (RuntimeError, TypeError) as error:
                if dtype is torch.float32:
                    raise RuntimeError(
                        f"the model does not run on random inputs of its example's shape: {error}"
                    ) from error

    def failures(self, structure: Structure, groups: Sequence[int]) -> dict[int, str]:
        """Groups (by index) to freeze and why; halves a failing set until single groups are found."""
        reason = self.fault(structure, groups) if groups else None
        if reason is None:
            return {}
        if len(groups) == 1:
            return {groups[0]: f"verification: {reason}"}
        middle = len(groups) // 2
        found = self.failures(structure, groups[:middle]) | self.failures(
            structure, groups[middle:]
        )
        # Each half passes alone: the groups interact, and only keeping the smaller half whole is safe.
        return found or {
            index: f"verification, jointly with others: {reason}" for index in groups[middle:]
        }

    def droppable(self) -> list[str]:
        """Modules that hand their input on when all their parameters are zero."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return droppable(self._model.eval(), self._inputs)

    def fault(self, structure: Structure, groups: Sequence[int]) -> str | None:
        """What goes wrong when units of all these groups go at once, None if nothing does."""
        exact = [g for g in groups if structure.groups[g].mask_exact]
        try:
            base, inner = self._model, structure
            inexact = [g for g in groups if g not in set(exact)]
            if inexact:
                keep = self._plan(structure, inexact)
                base, inner = remove(base, structure, keep), structure.restrict(keep)
            if not exact:
                return self._against(self._run(base), self._dense, values=False)
            keep_exact = self._plan(structure, exact)
            small = self._run(remove(base, inner, keep_exact))
            masked = copy.deepcopy(base)
            zero(masked, inner, keep_exact)
            return self._against(small, self._dense, values=False) or self._against(
                small, self._run(masked), values=True
            )
        except Exception as error:  # Whatever a model raises on smaller tensors is the finding.
            return f"removing units breaks the forward pass ({type(error).__name__}: {_first_line(error)})"

    def _plan(self, structure: Structure, groups: Sequence[int]) -> Keep:
        """Drop about half of each group, never nothing and, but for blocks, never all."""
        keep = structure.full()
        for index in groups:
            group = structure.groups[index]
            if group.kind == "block":
                keep[group.units] = False
                continue
            some = self._random.random(group.size) < 0.5
            first, second = self._random.choice(group.size, 2, replace=False)
            some[first], some[second] = True, False
            keep[group.units] = some
        return keep

    def _run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # What is prunable must not depend on how warnings are set.
            torch.manual_seed(0)
            outputs = _tensors(self._inputs.call(model.eval()))
            self._compared = len(outputs)
            if self._trained:
                torch.manual_seed(0)
                twin = copy.deepcopy(model).train()
                outputs += _tensors(self._inputs.twice().call(twin))
        return outputs

    def _against(self, outputs: list[Tensor], reference: list[Tensor], values: bool) -> str | None:
        before, after = [list(t.shape) for t in reference], [list(t.shape) for t in outputs]
        if before != after:
            return f"removing units changes the model's output from shape {before} to {after}"
        for i, (output, expected) in enumerate(zip(outputs, reference, strict=True)):
            if not output.is_floating_point():
                continue
            if not output.isfinite().all():
                return "removing units makes the model's output infinite or not a number"
            scale = expected.abs().max().item() if expected.numel() else 0.0
            if values and scale > 0 and i < self._compared:
                apart = (output - expected).abs().max().item() / scale
                if not apart <= TOLERANCE[self._dtype]:
                    return f"removed and masked units differ by {apart:.1e} of the model's output"
        return None


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with every parameter and running statistic drawn anew, so that no zero hides an error.

    Weights get variance 2 / fan-in, scales and variances lie in [0.5, 1.5]; other buffers stay.
    """
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            fresh = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                fresh *= (2.0 / max(parameter[0].numel(), 1)) ** 0.5
            elif name.endswith("bias"):
                fresh *= 0.1
            else:
                fresh = 0.5 + torch.rand(parameter.shape, generator=generator)
            parameter.copy_(fresh)
        for name, buffer in twin.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return twin


def _noise(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Indices and flags stay as the example has them."""
    return (
        torch.randn(x.shape, generator=generator).to(x.device, dtype)
        if x.is_floating_point()
        else x
    )


def _tensors(outputs: object) -> list[Tensor]:
    return [output for output in pytree.tree_leaves(outputs) if isinstance(output, Tensor)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:160]
