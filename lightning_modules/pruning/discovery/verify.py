"""Tries every group on randomised parameters, and freezes what does not behave as the table
says.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.depth import droppable
from lightning_modules.pruning.discovery.assemble import assemble
from lightning_modules.pruning.discovery.counted import multiplications
from lightning_modules.pruning.discovery.proof import alike, altered
from lightning_modules.pruning.discovery.trace import Trace
from lightning_modules.pruning.discovery.tracer import exported_program
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.masks import zero
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Skipped, Structure, inside

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest difference between removed and masked outputs, relative to the largest output."""

Fault = Callable[[Structure, Sequence[int]], str | None]
"""What is wrong when units of these groups, by index, are removed; None if nothing."""


def verify(trace: Trace, inputs: Inputs, depth: bool = False, seed: int = 0) -> Structure:
    """The structure whose groups all passed, each alone or with all others.

    Failing groups are frozen in `trace`, with the reason. A `mask_exact` group passes if removing
    random units gives what zeroing them gives. Any other group passes if the smaller model runs
    with finite outputs of the same shapes, and if values or the graph prove that it means the same
    (proof.py). The closed form of the costs must give the MACs that are
    counted when the smaller model runs. With `depth`, residual blocks that can be removed as a
    whole are looked for and tried too, each alone, then all of them with channels. It runs inside
    `undisturbed`, which restores the random state.
    """
    structure = assemble(trace)
    trial = _Trial(trace, inputs, seed)
    while structure.groups:
        failures = trial.failures(structure, range(len(structure.groups)), trial.fault)
        failures = failures or trial.unproven(structure)
        if not failures:
            break
        for index, reason in failures.items():
            _freeze_group(trace, structure, index, reason)
        structure = assemble(trace)
    return _blocks(trace, trial) if depth else structure


def _freeze_group(trace: Trace, structure: Structure, index: int, reason: str) -> None:
    group = structure.groups[index]
    for axis, row in structure.table.items():
        ids = trace.axes[axis][group.among(row)]
        trace.labels.freeze(ids, reason)


def _blocks(trace: Trace, trial: _Trial) -> Structure:
    """The structure with all blocks that hold MACs and passed; the others are noted."""
    for path in trial.droppable():
        if any(inside(raw.path, [path]) for raw in trace.products):
            trace.blocks[path] = None
    structure = assemble(trace)
    for index, reason in _failing_blocks(structure, trial).items():
        path = structure.groups[index].name
        del trace.blocks[path]
        trace.notes.setdefault(Skipped(path, reason))
    return assemble(trace)


def _failing_blocks(structure: Structure, trial: _Trial) -> dict[int, str]:
    """Blocks, by the index of their group, that cannot be removed, and why."""
    layers: dict[str, int] = {}
    blocks: list[int] = []
    for index, group in enumerate(structure.groups):
        if group.kind == "block":
            blocks.append(index)
        else:
            layers[group.name] = index
    if not blocks:
        return {}
    failures = {}
    for index in blocks:
        if structure.groups[index].name in layers:
            failures[index] = "a layer has the same name"
    left = [index for index in blocks if index not in failures]
    failures |= trial.failures(structure, left, trial.fault)
    passed = [index for index in blocks if index not in failures]
    if not passed:
        return failures
    reason = trial.fault(structure, [*layers.values(), *passed[::2]])
    if reason is not None:
        for index in passed:
            failures[index] = f"verification, jointly with channels: {reason}"
    return failures


@dataclass(frozen=True)
class _Outcome:
    """What one run gives: the outputs in eval mode, perhaps those in train mode, and the MACs."""

    tensors: list[Tensor]
    macs: int


class _Trial:
    """A randomised copy of the model, its outputs, and random plans tried on it."""

    def __init__(self, trace: Trace, inputs: Inputs, seed: int) -> None:
        self._trace = trace
        self._trained = trace.trained
        self._random = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        # Double precision separates a wrong tie from rounding. Some models insist on float.
        # Others make indices of their floats: these run on the example's own values alone.
        fault = ""
        for random, dtype in product((True, False), (torch.float64, torch.float32)):
            values = partial(_noise if random else _cast, dtype=dtype, generator=generator)
            self._dtype = dtype
            self._model = randomised(trace.model, generator).to(dtype)
            self._inputs = inputs.map(values)
            try:
                self._dense = self._run(self._model)
                return
            except (RuntimeError, TypeError, IndexError, ValueError) as error:
                fault = str(error)
        raise RuntimeError(
            "the model runs neither on random inputs of its example's shape nor on the example: "
            f"{fault}"
        )

    def failures(self, structure: Structure, groups: Sequence[int], fault: Fault) -> dict[int, str]:
        """Groups, by index, that must be frozen, and why.

        A failing set is halved until single groups are found.
        """
        reason = fault(structure, groups) if groups else None
        if reason is None:
            return {}
        if len(groups) == 1:
            return {groups[0]: f"verification: {reason}"}
        middle = len(groups) // 2
        first_half = groups[:middle]
        second_half = groups[middle:]
        failing = self.failures(structure, first_half, fault)
        failing |= self.failures(structure, second_half, fault)
        if failing:
            return failing
        # Each half passes alone, so the groups interact. Only keeping one half whole is safe.
        return dict.fromkeys(second_half, f"verification, jointly with others: {reason}")

    def unproven(self, structure: Structure) -> dict[int, str]:
        """Inexact groups, by index, for which nothing shows that the smaller model means the same.

        By values where equal units can stand for one another, otherwise by the graph.
        """
        inexact = []
        for index, group in enumerate(structure.groups):
            if not group.mask_exact:
                inexact.append(index)
        if not inexact or self._unlike(structure, inexact) is None:
            return {}
        if self._trace.steps and self._altered(structure, inexact) is None:
            return {}
        return self.failures(structure, inexact, self._unlike_and_altered)

    def _unlike_and_altered(self, structure: Structure, groups: Sequence[int]) -> str | None:
        """What neither proof shows to stay the same; None if one of them does."""
        unlike = self._unlike(structure, groups)
        if unlike is None or not self._trace.steps:
            return unlike
        return self._altered(structure, groups)

    def _unlike(self, structure: Structure, groups: Sequence[int]) -> str | None:
        """How a model of equal units differs from one that has each of them once."""
        try:
            equal, small = alike(self._model, structure, groups)
            return self._difference(self._run(small), self._run(equal), values=True)
        except Exception as error:  # as in `fault`
            return _broken(error)

    def _altered(self, structure: Structure, groups: Sequence[int]) -> str | None:
        """What the graph of the smaller model does otherwise than that of the dense one."""
        keep = self._plan(structure, groups)
        try:
            program = exported_program(remove(self._model, structure, keep), self._inputs)
        except Exception as error:  # as in `fault`
            return _broken(error)
        return altered(self._trace, structure, keep, program.graph)

    def droppable(self) -> list[str]:
        """Modules that return their input when all their parameters are zero."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return droppable(self._model.eval(), self._inputs)

    def fault(self, structure: Structure, groups: Sequence[int]) -> str | None:
        """What goes wrong when units of all these groups are removed at once; None if nothing."""
        try:
            return self._fault(structure, groups)
        except Exception as error:  # whatever a model raises on smaller tensors is the finding
            return _broken(error)

    def _fault(self, structure: Structure, groups: Sequence[int]) -> str | None:
        exact: list[int] = []
        inexact: list[int] = []
        for index in groups:
            kind = exact if structure.groups[index].mask_exact else inexact
            kind.append(index)
        base = self._model
        inner = structure
        keep = structure.full()
        if inexact:
            keep = self._plan(structure, inexact)
            base = remove(base, structure, keep)
            inner = structure.restrict(keep)
        if not exact:
            small = self._run(base)
            return self._misfit(small, structure, keep)
        keep_exact = self._plan(structure, exact)
        small = self._run(remove(base, inner, keep_exact))
        masked = copy_of(base)
        zero(masked, inner, keep_exact)
        misfit = self._misfit(small, structure, keep & keep_exact)
        return misfit or self._difference(small, self._run(masked), values=True)

    def _misfit(self, small: _Outcome, structure: Structure, keep: Keep) -> str | None:
        """How the smaller model's shapes and MACs differ from what they must be."""
        shapes = self._difference(small, self._dense, values=False)
        if shapes is not None:
            return shapes
        expected = Cost(structure).macs(structure.counts(keep))
        if small.macs != expected:
            return f"the smaller model does {small.macs:,} MACs, and its cost says {expected:,}"
        return None

    def _plan(self, structure: Structure, groups: Sequence[int]) -> Keep:
        """Drop about half of each group: never nothing and, except for blocks, never all."""
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

    def _run(self, model: nn.Module) -> _Outcome:
        """The outputs in eval mode and, if the walk needed it, those in train mode."""
        with torch.no_grad(), warnings.catch_warnings():
            # what can be pruned must not depend on how warnings are set
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            with multiplications(model.eval()) as counter:
                outputs = _tensors(self._inputs.call(model))
            self._compared = len(outputs)
            if self._trained:
                torch.manual_seed(0)
                twin = copy_of(model).train()
                outputs += _tensors(self._inputs.repeated(2).call(twin))
        return _Outcome(outputs, counter.macs)

    def _difference(self, run: _Outcome, reference: _Outcome, values: bool) -> str | None:
        """How outputs differ from the reference in shape and, with `values`, in value.

        None if they do not differ. Values are compared in eval mode only.
        """
        before = _shapes(reference.tensors)
        after = _shapes(run.tensors)
        if before != after:
            return f"removing units changes the model's output from shape {before} to {after}"
        for index, (output, expected) in enumerate(
            zip(run.tensors, reference.tensors, strict=True)
        ):
            if not output.is_floating_point():
                continue
            if not output.isfinite().all():
                return "removing units makes the model's output infinite or not a number"
            if not values or index >= self._compared:
                continue
            error = _relative_error(output, expected)
            if not error <= TOLERANCE[self._dtype]:
                return f"removed and masked units differ by {error:.1e} of the model's output"
        return None


def _shapes(tensors: list[Tensor]) -> list[list[int]]:
    return [list(tensor.shape) for tensor in tensors]


def _relative_error(output: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected magnitude; 0 if that is 0."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    if not scale > 0:
        return 0.0
    return (output - expected).abs().max().item() / scale


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with every parameter and running statistic drawn anew, so that no zero hides an error.

    Weights get variance 2 / fan-in; scales and variances lie in [0.5, 1.5]; other buffers stay.
    """
    twin = copy_of(model).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            # drawn for scales too, which would otherwise change all that is drawn after them
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
    """Random values in the place of floats; indices and flags stay as the example has them."""
    if not x.is_floating_point():
        return x
    return torch.randn(x.shape, generator=generator).to(x.device, dtype)


def _cast(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _tensors(outputs: object) -> list[Tensor]:
    return [output for output in pytree.tree_leaves(outputs) if isinstance(output, Tensor)]


def _broken(error: Exception) -> str:
    """The finding that a smaller model does not run."""
    return f"removing units breaks the forward pass ({type(error).__name__}: {_first_line(error)})"


def _first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 160 characters."""
    return (str(error).strip() or "no message").splitlines()[0][:160]
