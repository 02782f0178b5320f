"""Carries an optimizer's state over a cut: the momenta and moments of the units that stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.errors import PlanError
from lightning_modules.pruning.removal import cut_tensor, selections
from lightning_modules.pruning.structure import Keep, Structure

State = Mapping[str, Mapping[str, Any]]
"""The optimizer's entries by parameter, e.g. {"step": ..., "exp_avg": ...}.

A parameter has its first name in the model.
"""


def slice_state(
    state: State, model: nn.Module, structure: Structure, keep: Keep
) -> dict[str, dict[str, Any]]:
    """The state with which the optimizer of `remove(model, structure, keep)` goes on.

    `model` is the one before the cut. Entries of their parameter's shape are cut like the
    parameter; numbers and one-element tensors stay. Tensors are copies. Parameters of dropped
    blocks vanish.
    Errors: PlanError for an entry of any other shape, for an unknown parameter, and as in `remove`.
    """
    cuts = selections(model, structure, keep)
    parameters = dict(model.named_parameters())
    _require_known(state, parameters)
    sliced: dict[str, dict[str, Any]] = {}
    for name, entries in state.items():
        if name not in cuts:
            continue
        sliced[name] = {}
        for key, value in entries.items():
            sliced[name][key] = _cut(name, key, value, parameters[name], cuts[name])
    return sliced


def by_name(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """The state of every parameter of `model` that `optimizer` has stepped.

    The tensors are the optimizer's own, not copies.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if optimizer.state.get(parameter):
            state[name] = dict(optimizer.state[parameter])
    return state


def load_by_name(optimizer: Optimizer, model: nn.Module, state: State) -> None:
    """Replace the state of `optimizer`, which is over the parameters of `model`, by `state`.

    Parameters that `state` does not name keep what the optimizer has of them.
    Errors: PlanError for a parameter that `model` or `optimizer` does not have, or for an entry of
    another shape.
    """
    held: set[int] = set()
    for group in optimizer.param_groups:
        held.update(map(id, group["params"]))
    parameters = {name: p for name, p in model.named_parameters() if id(p) in held}
    _require_known(state, parameters)
    for name, entries in state.items():
        copies = {}
        for key, value in entries.items():
            _check(name, key, value, parameters[name])
            copies[key] = value.clone() if isinstance(value, Tensor) else value
        optimizer.state[parameters[name]] = copies


def _require_known(state: State, parameters: Mapping[str, Tensor]) -> None:
    unknown = sorted(set(state) - set(parameters))
    if unknown:
        raise PlanError(
            "an optimizer's state must be of parameters that model and optimizer have; they lack "
            f"{unknown[:5]}; use by_name with the same model"
        )


def _cut(name: str, key: str, value: Any, parameter: Tensor, cuts: list[tuple[int, Tensor]]) -> Any:
    _check(name, key, value, parameter)
    if not isinstance(value, Tensor):
        return value
    if value.shape == parameter.shape:
        return cut_tensor(value, cuts)
    return value.clone()


def _check(name: str, key: str, value: Any, parameter: Tensor) -> None:
    if isinstance(value, Tensor) and value.shape != parameter.shape and value.numel() != 1:
        raise PlanError(
            "an optimizer's tensors must have their parameter's shape or one element; "
            f"'{key}' of {name} has {list(value.shape)}, the parameter {list(parameter.shape)}; "
            "take another optimizer, or one pruning step (space.steps=[1,1])"
        )
