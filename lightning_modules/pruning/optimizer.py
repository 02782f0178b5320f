"""Carries an optimizer's state over a cut: momenta and moments of the units that stay, by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.errors import PlanError
from lightning_modules.pruning.removal import select, selections
from lightning_modules.pruning.structure import Keep, Structure

State = Mapping[str, Mapping[str, Any]]
"""Per parameter (its first name in the model): the optimizer's entries, e.g. {"step": ..., "exp_avg": ...}."""


def slice_state(
    state: State, model: nn.Module, structure: Structure, keep: Keep
) -> dict[str, dict[str, Any]]:
    """What the optimizer of `remove(model, structure, keep)` goes on with; `model` is the one before the cut.

    Entries of their parameter's shape are cut like it, numbers and one-element tensors stay; tensors are copies.
    Parameters of dropped blocks vanish.
    Errors: PlanError for an entry of any other shape, an unknown parameter, and as in `remove`.
    """
    cuts = selections(model, structure, keep)
    parameters = dict(model.named_parameters())
    _known(state, parameters)
    return {
        name: {
            key: _cut(name, key, value, parameters[name], cuts[name])
            for key, value in entries.items()
        }
        for name, entries in state.items()
        if name in cuts
    }


def by_name(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """The state of every parameter of `model` that `optimizer` has stepped; the tensors are those of the optimizer."""
    return {
        name: dict(optimizer.state[p])
        for name, p in model.named_parameters()
        if optimizer.state.get(p)
    }


def load_by_name(optimizer: Optimizer, model: nn.Module, state: State) -> None:
    """Put `state` into an optimizer over the parameters of `model`, in place of what it has of them.

    Errors: PlanError for a parameter that `model` or `optimizer` does not have, or one of another shape.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in held}
    _known(state, parameters)
    for name, entries in state.items():
        for key, value in entries.items():
            _check(name, key, value, parameters[name])
        optimizer.state[parameters[name]] = {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in entries.items()
        }


def _known(state: State, parameters: Mapping[str, Tensor]) -> None:
    unknown = sorted(set(state) - set(parameters))
    if unknown:
        raise PlanError(
            f"an optimizer's state must be of parameters that model and optimizer have; they lack {unknown[:5]}; use "
            "by_name with the same model"
        )


def _cut(name: str, key: str, value: Any, parameter: Tensor, cuts: list[tuple[int, Tensor]]) -> Any:
    _check(name, key, value, parameter)
    if not isinstance(value, Tensor):
        return value
    return select(value, cuts) if value.shape == parameter.shape else value.clone()


def _check(name: str, key: str, value: Any, parameter: Tensor) -> None:
    if isinstance(value, Tensor) and value.shape != parameter.shape and value.numel() != 1:
        raise PlanError(
            f"an optimizer's tensors must have their parameter's shape or one element; '{key}' of {name} has "
            f"{list(value.shape)}, the parameter {list(parameter.shape)}; begin with a fresh optimizer instead"
        )
