"""The error behind a group as its units go: closed forms, and what is free to go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_modules.pruning.structure import Structure
from orchestrator.results.error_curves import error_at
from orchestrator.search.trials.methods import (
    CURVE_POINTS,
    PreparedStage,
    error_curve,
    prepare_method,
)
from tests.contracts.criteria_models import structure_of
from tests.search.problems import Bench, bench

GROUP = "stages.1.0.conv1"


def scored(structure: Structure, errors: Any) -> PreparedStage:
    """A stage with these errors."""
    pruner: Any = SimpleNamespace(structure=structure)
    settings: Any = None
    return PreparedStage(settings, pruner, errors, errors)


def copy_half(here: Bench) -> None:
    """Let the second half of a group's units be copies of the first half."""
    (group,) = [group for group in here.facts.structure.groups if group.name == GROUP]
    half = group.size // 2
    state = here.facts.model.state_dict()
    for member in group.members:
        if member.role == "out":
            state[member.tensor][half:] = state[member.tensor][:half].clone()


def test_units_go_in_the_order_of_their_errors() -> None:
    curve = error_curve(np.array([3.0, 1.0, 2.0]))
    assert curve == [(0.0, 0.0), (1 / 3, 1.0), (2 / 3, 2.0), (1.0, 3.0)]
    assert error_at(curve, 0.5) == pytest.approx(1.5)


@pytest.mark.parametrize("units", [1, 2, 19, 20, 500])
def test_a_curve_has_few_points_and_both_ends(units: int) -> None:
    errors = np.arange(1.0, units + 1)
    curve = error_curve(errors)
    assert len(curve) == min(units + 1, CURVE_POINTS)
    assert curve[0] == (0.0, 0.0)
    assert curve[-1] == (1.0, float(units))
    for share, error in curve:
        assert error == pytest.approx(share * units)


def test_copies_are_free_to_go_up_to_half_of_the_units(tmp_path: Path) -> None:
    here = bench(tmp_path, tmp_path, "method=obs", "method.criterion.damping=1e-9")
    with torch.no_grad():
        copy_half(here)
    stage = prepare_method(here.lab, here.settings.method).stages[0]
    curve = stage.error_curves()[GROUP]
    assert error_at(curve, 0.5) < 1e-5
    assert error_at(curve, 1.0) > 0.1
    free = stage.free()
    assert free is not None
    assert 0.5 <= free[GROUP] < 1.0


def test_groups_that_nothing_consumes_have_no_error() -> None:
    structure = structure_of("head_dim")
    unconsumed = []
    for group in structure.groups:
        if not any(member.role == "in" for member in group.members):
            unconsumed.append(group.name)
    assert unconsumed
    stage = scored(structure, np.ones(structure.n_units))
    curves = stage.error_curves()
    assert not set(curves) & set(unconsumed)
    assert set(curves) == set(stage.free() or ())


def test_without_errors_there_is_no_curve() -> None:
    stage = scored(structure_of("plain"), None)
    assert stage.error_curves() == {}
    assert stage.free() is None
