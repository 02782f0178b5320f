"""Finished plans on disk and who inherits from whom."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightning_modules.errors import DataError
from lightning_modules.models import SmallResNet
from lightning_modules.pruning.structure import Structure
from lightning_modules.pruning.weights import effective_macs
from orchestrator.search.plans.finished import (
    PLAN,
    WEIGHTS,
    Finished,
    keep_from_json,
    keep_to_json,
    load_finished,
    nearest_parent,
    read_plan,
    save_plan,
)
from orchestrator.search.plans.lineage import Lineage, Link
from tests.structures import discovered

MODEL = SmallResNet(10, width=8)
LINK = Link(0, "l2", {}, {}, 3, "", {})


def structure() -> Structure:
    return discovered("small resnet, width 8", lambda: (MODEL, (torch.zeros(1, 1, 8, 8),)))


def finished(number: int, macs: int, *kept: int) -> Finished:
    return Finished(number, macs, np.array(kept, dtype=float), np.ones(1, dtype=bool), ())


PLANS = [
    finished(0, 100, 8, 8),
    finished(1, 60, 6, 6),
    finished(2, 50, 7, 4),
    finished(3, 60, 6, 6),
]


@pytest.mark.parametrize(
    ("kept", "parent"),
    [((5, 5), 3), ((7, 4), 0), ((7, 3), 2), ((6, 6), 0), ((8, 8), None), ((9, 1), None)],
)
def test_the_parent_is_the_cheapest_plan_that_contains_the_child(
    kept: tuple[int, int], parent: int | None
) -> None:
    found = nearest_parent(PLANS, np.array(kept, dtype=float))
    assert (None if found is None else found.number) == parent


def test_a_parent_has_at_least_the_density_of_its_child() -> None:
    dense = np.array([8.0, 1.0])
    plans = [
        Finished(n, m, np.array(has), np.ones(1, dtype=bool), ())
        for n, m, has in ((0, 9, [8, 0.5]), (1, 5, [8, 0.2]))
    ]
    for wanted, parent in (
        ([8, 0.3], 0),
        ([8, 0.1], 1),
        ([8, 0.2], 0),
        ([4, 0.2], 1),
        (dense, None),
    ):
        found = nearest_parent(plans, np.array(wanted))
        assert (None if found is None else found.number) == parent


def test_kept_units_survive_json() -> None:
    keep = np.random.default_rng(0).random(structure().n_units) < 0.6
    runs = json.loads(json.dumps(keep_to_json(structure(), keep)))
    assert (keep_from_json(runs, structure()) == keep).all()


def document() -> dict[str, object]:
    keep = structure().full()
    density = {"fc.weight": 0.25}
    return {
        "trial": 4,
        "ancestors": [1],
        "keep": keep_to_json(structure(), keep),
        "shares": density,
        "density": density,
        "lineage": Lineage("", None, {}, links=(LINK, LINK)).to_json(),
    }


def test_a_saved_plan_is_read_back(tmp_path: Path) -> None:
    save_plan(tmp_path / "4", document(), MODEL)
    found = load_finished(tmp_path / "4", structure(), ["conv1.weight", "fc.weight"])
    assert (found.number, found.ancestors, found.sparse) == (4, (1,), ("fc.weight",))
    assert found.macs == effective_macs(structure(), structure().full(), {"fc.weight": 0.25})
    assert found.trained_rounds == 6
    assert found.has.tolist() == [*structure().sizes.tolist(), 1.0, 0.25]
    weights = load_file(tmp_path / "4" / WEIGHTS)
    assert all(torch.equal(value, weights[name]) for name, value in MODEL.state_dict().items())


def test_damaged_and_foreign_plans_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a folder with plan.json and weights.safetensors"):
        read_plan(tmp_path)
    save_plan(tmp_path, document(), MODEL)
    foreign = json.loads((tmp_path / PLAN).read_text())
    foreign["keep"]["conv1"] = [[0, 4000]]
    (tmp_path / PLAN).write_text(json.dumps(foreign))
    with pytest.raises(DataError, match="does not fit this model"):
        load_finished(tmp_path, structure())
    (tmp_path / PLAN).write_text("{")
    with pytest.raises(DataError, match=r"plan.json"):
        read_plan(tmp_path)
