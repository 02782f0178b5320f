"""Every cost of the table can be worked out, and is known when its row says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.costs import COSTS, known_names, ratio_name, ratios_of, with_ratios
from orchestrator.search.costs import FORMULAS, MEASURED_COSTS, SHAPE_COSTS, Costed, costs_of
from orchestrator.search.lab.latency_model import pruned
from tests.search.problems import lab_of


def test_the_table_and_the_formulas_are_of_the_same_costs() -> None:
    assert list(FORMULAS) == list(COSTS)
    assert set(SHAPE_COSTS) | set(MEASURED_COSTS) <= set(COSTS)


@pytest.mark.parametrize("name", COSTS)
def test_a_cost_falls_with_the_model_and_is_one_against_itself(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.getbasetemp() / "costs"
    lab = lab_of(home, "made_up={}", "objectives=quality_estimated_latency")
    sizes = lab.facts.structure.sizes
    costs = []
    for kept in (sizes, np.maximum(lab.facts.structure.least, sizes // 8)):
        model = pruned(lab.facts.model, lab.facts.structure, kept)
        costs.append(costs_of(lab.facts.prices, Costed(kept, shaped=model, trained=model), [name]))
    dense, small = costs
    assert ratios_of(dense, dense) == {name: 1.0}
    assert 0.0 < small[name] < dense[name] or name in MEASURED_COSTS


def test_what_is_not_known_yet_is_left_out(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "made_up={}")
    counts = costs_of(lab.facts.prices, Costed(lab.facts.structure.sizes))
    assert set(counts) == {"flops", "effective_flops", "params"}
    assert "effective_flops" not in costs_of(
        lab.facts.prices, Costed(lab.facts.structure.sizes, density=None)
    )


def test_names_of_ratios_lead_back_to_their_costs() -> None:
    assert [name.removesuffix("_ratio") for name in known_names()] == [*COSTS, *COSTS]
    assert with_ratios({"flops": 4.0}, {"flops": 0.5}) == {"flops": 4.0, ratio_name("flops"): 0.5}
