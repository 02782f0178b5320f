"""One batch through everything that a search needs: all faults together, within seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_modules.data.contract import check_data, check_one, ready_data
from lightning_modules.errors import ConfigError, UserError
from lightning_modules.phases.fit import evaluate, fit, run_test_steps
from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.cost import prunable_macs_fraction
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.tasks.contract import (
    build_task,
    check_outputs,
    check_task,
    divergence_of,
    inputs_of,
    step_loss,
)
from lightning_modules.tasks.metrics import under_names_of
from lightning_modules.tasks.whole import network_of, trained_of
from orchestrator.report.tables import show, summary_table
from orchestrator.results.quantities import percent
from orchestrator.search.goals import goals_of
from orchestrator.search.lab.dense import unchecked_model
from orchestrator.search.lab.lab import optimization, seed_everything
from orchestrator.search.lab.prepare import check_prunable, find_structure
from orchestrator.search.parts import check_parts
from orchestrator.settings import Settings

CPU = torch.device("cpu")


@dataclass
class Checked:
    """What was found: for each thing checked what it is like, or what is wrong with it."""

    found: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[tuple[str, str]]:
        """In the order of the checks; what needs something that failed was not tried."""
        lines = []
        for name in CHECKS:
            text = self.found.get(name, "not tried: something before it failed")
            if name in self.faults:
                text = f"FAULT: {self.faults[name]}"
            lines.append((name, text))
        return lines


def check(settings: Settings) -> Checked:
    """Print and return what one batch shows of model, data and task.

    Nothing is trained and nothing is written.
    Errors: ConfigError that lists all faults, where there are any.
    """
    checked = Checked()
    seen = _Seen(settings)
    failed: set[str] = set()
    for name, (look, needs) in CHECKS.items():
        if failed.intersection(needs):
            failed.add(name)
            continue
        try:
            checked.found[name] = look(seen)
        except UserError as error:
            checked.faults[name] = str(error)
            failed.add(name)
        except Exception as error:  # whatever the user's own code raises is the finding
            checked.faults[name] = f"{type(error).__name__}: {_first_line(error)}"
            failed.add(name)
    show(summary_table("what one batch shows", checked.lines()))
    if checked.faults:
        listed = [f"{name}: {fault}" for name, fault in checked.faults.items()]
        raise ConfigError(
            f"{len(listed)} of {len(CHECKS)} checks found a fault:\n  " + "\n  ".join(listed)
        )
    return checked


class _Seen:
    """What the checks have made so far, for those that follow."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.data: Any = None
        self.model: nn.Module = nn.Identity()
        self.val: Any = None
        self.train: Any = None
        self.inputs = Inputs()

    def task(self) -> Any:
        """The task around a copy of the model, which a check may change."""
        return build_task(self.settings.task, copy_of(self.model), self.data)


def _configuration(seen: _Seen) -> str:
    from orchestrator.jobs.checked import check_names

    check_names(seen.settings)
    check_parts(seen.settings)
    goals = goals_of(seen.settings)
    better = "larger" if goals.sign > 0 else "smaller"
    return f"the quality is {goals.quality}, {better} is better"


def _data(seen: _Seen) -> str:
    seen.data = ready_data(seen.settings.data)
    check_data(seen.data)
    batches = seen.data.train_batches(0)
    seen.train = next(iter(batches))
    seen.val = next(iter(seen.data.val_dataloader()))
    # the search itself does not touch test data before the confirmation
    test = seen.data.test_dataloader()
    check_one("test_dataloader", test)
    next(iter(test))
    return f"{len(batches)} training batches, as {_described(seen.train)}"


def _augmentation(seen: _Seen) -> str:
    seed_everything(1)
    first = next(iter(seen.data.train_batches(0)))
    seed_everything(2)
    again = next(iter(seen.data.train_batches(0)))
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(again), strict=True)
    for one, other in pairs:
        if isinstance(one, Tensor) and not (one.shape == other.shape and torch.equal(one, other)):
            raise ConfigError(
                "train_batches(0) gives other batches each time, so that no result can be repeated "
                "(job=replay): draw the order and the augmentation from its seed"
            )
    return "the same batches from the same seed"


def _model(seen: _Seen) -> str:
    seen.model = unchecked_model(seen.settings)
    size = sum(parameter.numel() for parameter in seen.model.parameters())
    return f"{seen.settings.model_name()}, {size:,} parameters"


def _steps(seen: _Seen) -> str:
    task = seen.task()
    check_task(task)
    return f"{type(task).__name__} has a training and a validation step"


def _inputs(seen: _Seen) -> str:
    seen.inputs = inputs_of(seen.task(), seen.val)
    seen.inputs.first().to_json()
    return f"the network is called with {_described((seen.inputs.args, dict(seen.inputs.kwargs)))}"


def _outputs(seen: _Seen) -> str:
    task = seen.task()
    check_outputs(task, seen.val)
    with torch.no_grad():
        return _described(seen.inputs.call(network_of(task).eval()))


def _loss(seen: _Seen) -> str:
    task = seen.task()
    task.train()
    loss = step_loss(task, seen.train)
    loss.backward()  # type: ignore[no-untyped-call]
    if loss.numel() != 1 or not bool(loss.isfinite()):
        raise ConfigError(f"the loss must be one finite number; it is {loss.detach()}")
    reached = [parameter.grad is not None for parameter in network_of(task).parameters()]
    if not any(reached):
        raise ConfigError("the loss depends on no parameter of the network that is pruned")
    share = f"{sum(reached)} of {len(reached)} parameters of the network"
    return f"{float(loss.detach()):.4g}; its gradient reaches {share}"


def _quality(seen: _Seen) -> str:
    logged = evaluate(seen.task(), _One(seen.val), CPU)
    goals = goals_of(seen.settings)
    missing = [name for name in goals.signs if name not in logged]
    if missing:
        raise ConfigError(
            f"validation must log {', '.join(missing)} (objectives.quality, objectives.metrics); "
            f"it logs {sorted(logged)}"
        )
    tested = run_test_steps(seen.task(), _One(seen.val), CPU)
    stands = set(goals.signs) <= set(under_names_of(logged, tested))
    through = "test_step" if stands else "validation_step"
    return f"{goals.quality} is {logged[goals.quality]:.4g}; test data go through {through}"


def _divergence(seen: _Seen) -> str:
    divergence = divergence_of(seen.task())
    if divergence is None:
        return "none: the task has none, so that nothing is distilled"
    with torch.no_grad():
        outputs = seen.inputs.call(network_of(seen.task()).eval())
        apart = pytree.tree_map_only(Tensor, _moved, outputs)
        same = float(divergence(outputs, outputs, 1.0))
        other = float(divergence(apart, outputs, 1.0))
    if abs(same) > 1e-4 or not other > same:
        raise ConfigError(
            "the divergence of outputs must be 0 where they are equal, and more where they differ; "
            f"it is {same:.4g} and {other:.4g}: give the task a `divergence` of its own, or None"
        )
    return "0 for equal outputs, more for others"


def _optimizer(seen: _Seen) -> str:
    names = []
    for phase in (seen.settings.phases.train, seen.settings.phases.finetune):
        task = seen.task()
        if any(parameter.requires_grad for parameter in trained_of(task).parameters()):
            fit(task, _One(seen.train), optimization(phase), rounds=1, round_steps=1, device=CPU)
        names.append("the module's own" if phase.own else phase.optimizer.target)
    return " for training, ".join(names) + " for finetuning"


def _structure(seen: _Seen) -> str:
    structure = find_structure(seen.settings, seen.model, seen.inputs.first())
    check_prunable(seen.settings, structure)
    share = percent(prunable_macs_fraction(structure))
    source = (
        "exports with torch.export"
        if structure.source == "export"
        else ("does not export with torch.export: found by torch-pruning")
    )
    return f"{source}; {len(structure.groups)} groups, {share} of the MACs"


Look = Callable[[_Seen], str]
CHECKS: dict[str, tuple[Look, tuple[str, ...]]] = {
    "configuration": (_configuration, ()),
    "data": (_data, ()),
    "augmentation": (_augmentation, ("data",)),
    "model": (_model, ()),
    "steps": (_steps, ("data", "model")),
    "inputs": (_inputs, ("steps",)),
    "outputs": (_outputs, ("inputs",)),
    "loss": (_loss, ("steps",)),
    "quality": (_quality, ("configuration", "outputs")),
    "divergence": (_divergence, ("outputs",)),
    "optimizer": (_optimizer, ("loss",)),
    "export": (_structure, ("outputs",)),
}
"""Each check with those that it needs, in the order in which they are made."""


class _One:
    """One batch as a loader."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        return iter([self.batch])


def _moved(tensor: Tensor) -> Tensor:
    return tensor + torch.randn_like(tensor) if tensor.is_floating_point() else tensor


def _described(value: Any) -> str:
    """A tree with the shapes and types of its tensors in their place."""

    def words(leaf: Any) -> str:
        if not isinstance(leaf, Tensor):
            return type(leaf).__name__
        return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"

    return str(pytree.tree_map(words, value)).replace("'", "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
