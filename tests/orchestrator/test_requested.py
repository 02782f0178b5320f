"""What was asked of each group stands beside what it keeps, with the reason where they differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules.pruning.discovery import discover
from orchestrator.jobs.view import groups_before
from orchestrator.report.sections.parts import Chart, Line, PageTable
from orchestrator.report.sections.pruned import pruned_section
from orchestrator.report.view import GroupFacts, Network
from orchestrator.results.requested import Requested, requested
from orchestrator.results.rows import Rows
from tests.orchestrator.test_report_page import view

GUARD = {"tolerance": 0.1}


def plan(
    kept: int, *levels: float, rule: str = "quantile", guard: object = None, **method: object
) -> dict[str, Any]:
    """A plan of one group of 16 units, with a record of its thresholds."""
    settings = {"round_to": None, "scope": "local", **method}
    return {
        "plan": {
            "kept": {"conv": kept},
            "asked": [{"levels": {"conv": level}, "rule": rule} for level in levels],
        },
        "lineage": {
            "recipe": {"phases": {"finetune": {"guard": guard}}},
            "methods": {"l2-1": settings},
            "links": [{"method": "l2-1"}],
        },
    }


def of(document: dict[str, Any], left: int) -> Requested | None:
    return requested(document, {"conv": 16}, {"conv": left})


def test_a_group_that_keeps_what_was_asked_needs_no_reason() -> None:
    assert of(plan(4, 0.75), left=4) == Requested({"conv": 4})


@pytest.mark.parametrize(
    ("document", "left", "why"),
    [
        (plan(8, 0.75, round_to=8), 8, "rounded up to a multiple of 8"),
        (plan(4, 0.75, guard=GUARD), 10, "the guard took back the last steps"),
        (plan(6, 0.75, 0.625), 6, "a search for allocations shared the units out anew"),
        (plan(7, 0.75, scope="global"), 7, "ranked together with those of other groups"),
        (plan(1, 1.0, scope="global"), 1, "no group is emptied"),
        (plan(4, 0.75), 0, "its whole block is gone"),
    ],
)
def test_a_difference_has_the_reason_of_what_moved_it_last(
    document: dict[str, Any], left: int, why: str
) -> None:
    said = of(document, left)
    assert said is not None
    assert said.units == {"conv": 4} or why == "no group is emptied"
    assert why in said.otherwise["conv"]


def test_what_is_not_known_has_no_reason() -> None:
    said = of(plan(4, 0.75), left=10)
    assert said is not None
    assert said.otherwise == {"conv": ""}


@pytest.mark.parametrize(
    "document", [{}, plan(4), plan(4, 0.75, rule="mean"), {**plan(4, 0.75), "lineage": {}}]
)
def test_a_plan_that_asks_for_no_number_of_units_says_so(document: dict[str, Any]) -> None:
    assert of(document, left=4) is None


def test_the_page_compares_what_was_asked_with_what_is_there() -> None:
    shown = view(models=2, groups=2)
    asked = Requested({"conv0": 7, "conv1": 2}, {"conv0": "rounded up"}, rounding=8)
    decided = replace(shown.decisions, trials={1: {"flops_ratio": 0.9}})
    section = pruned_section(replace(shown, requested={"1": asked}, decisions=decided))
    models, groups = [
        part for part in section.parts if isinstance(part, PageTable) and "sked" in part.caption
    ]
    why = "the most multiples of 8 units within the target; 1 group: rounded up"
    assert models.rows == [["trial 1", "90.0 %", "87.3 %", "1 of 2", why]]
    # two of sixteen units are kept
    assert groups.rows == [["conv0", "7 → 2", "rounded up"]]
    (outline,) = [p for p in section.parts if isinstance(p, Chart) and p.name == "units"]
    marked = [record for record in outline.spec["data"]["values"] if "asked" in record]
    assert [(mark["trial"], mark["group"], mark["asked"]) for mark in marked] == [("1", "conv0", 7)]


def test_without_targets_there_is_no_column_for_them() -> None:
    shown = replace(view(models=1), requested={"0": Requested({"conv0": 1})})
    (table,) = [
        part
        for part in pruned_section(shown).parts
        if isinstance(part, PageTable) and part.caption == "Asked for and reached"
    ]
    assert table.header == ["model", "FLOPs reached", "groups otherwise", "why"]
    assert table.rows == [["trial 0", "90.0 %", "0 of 1", ""]]


def test_models_that_have_what_was_asked_say_so_in_a_line() -> None:
    asked = {"0": Requested({"conv0": 1})}
    shown = replace(view(models=1), requested=asked, errors={})
    lines = [part.text for part in pruned_section(shown).parts if isinstance(part, Line)]
    assert lines == ["Every group of these models keeps as many units as were asked for."]


def test_rows_are_as_high_as_their_share_of_the_macs_and_never_too_low() -> None:
    shown = view(models=1, groups=3)
    facts = [
        GroupFacts(f"conv{n}", "channel", 16, share) for n, share in enumerate([0.6, 0.39, 0.01])
    ]
    (chart, *_) = pruned_section(replace(shown, network=Network(facts))).parts
    assert isinstance(chart, Chart)
    heights = [round(r["bottom"] - r["top"], 1) for r in chart.spec["data"]["values"]]
    assert heights == [27.0, 17.5, 11.0]
    assert chart.spec["height"] == sum(heights)


def test_rows_without_a_share_have_the_least_height() -> None:
    shown = replace(view(models=1, groups=0), kept={"0": {"fc.weight": 0.5, "conv.weight": 0.2}})
    (chart, *_) = pruned_section(replace(shown, rows=Rows(front=shown.rows.front))).parts
    assert isinstance(chart, Chart)
    places = [(record["top"], record["bottom"]) for record in chart.spec["data"]["values"]]
    assert places == [(0.0, 11.0), (11.0, 22.0)]


def test_layers_that_stay_whole_are_rows_in_their_place_with_the_reason() -> None:
    shown = view(models=1, groups=2)
    network = replace(
        shown.network, skipped={"fc": "the output", "stem": "kept"}, before={"stem": 1}
    )
    chart, *parts = pruned_section(replace(shown, network=network)).parts
    assert isinstance(chart, Chart)
    rows = [(record["group"], record.get("why")) for record in chart.spec["data"]["values"]]
    # nobody knows where fc stands
    assert rows == [("conv0", None), ("stem", "kept"), ("conv1", None)]
    table = next(part for part in parts if isinstance(part, PageTable))
    assert [line[0] for line in table.rows] == ["conv0", "conv1"]


def test_the_place_of_a_layer_is_among_the_groups_of_the_network() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    structure = discover(network, (torch.randn(1, 4),))
    assert [group.name for group in structure.groups] == ["0", "2"]
    assert groups_before(structure, ["4", "2", "1"]) == {"4": 2, "2": 1}
