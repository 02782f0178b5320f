"""Tasks whose batches, outputs and metrics differ, from the command line to a model in a fresh
process.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv
from tests.contracts.task_cases import CASES, overrides
from tests.forked import output_of

SMALL = [
    "study.name=case",
    "study.n_trials=4",
    "search.chain.targets=3",
    "phases=deep",
    "phases.train.epochs=6",
    "phases.finetune.round_steps=8",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "phases.confirm.seeds=[0,1]",
    "phases.confirm.baselines=[uniform]",
    "tracking=none",
    "threads=1",
]
FAMILIES = ("regression", "detection", "language_model", "control")
"""Of tables, images, sequences and episodes one: the slow tests try all."""
OUTPUTS = {
    "multitask": "dict",
    "control": "dict",
    "detection": "dict",
    "language_model": "CausalLMOutputWithCrossAttentions",
}
"""What networks give that give no tensor."""
LOAD = """
import sys
import orchestrator
from lightning_modules.pruning.inputs import run
from tests.contracts.task_cases import parts_of, batches
from lightning_modules.tasks.contract import inputs_of
network, data, task = parts_of(sys.argv[1])
pruned = orchestrator.load_pruned(sys.argv[2])
outputs = run(pruned, inputs_of(task, next(batches(task, data))))
assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in network.parameters())
print(type(outputs).__name__)
"""


def _one_of_each_family(names: Iterable[str]) -> list[Any]:
    cases = []
    for name in names:
        marks = [pytest.mark.family] if name in FAMILIES else []
        cases.append(pytest.param(name, marks=marks))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("name", _one_of_each_family(CASES))
def test_a_task_goes_through_the_search_and_its_models_load_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*overrides(name), *SMALL]) == 0
    trials = read_csv("runs/case/trials.csv", TrialRow)
    assert [row.state for row in trials].count("completed") >= 3
    front = read_csv("runs/case/front.csv", ConfirmedRow)
    assert front
    dense = read_csv("runs/case/baselines.csv", ConfirmedRow)[0]
    assert dense.origin == "dense"
    Path("load.py").write_text(LOAD)
    said = output_of(["load.py", name, front[-1].path], tmp_path)
    assert said.strip() == OUTPUTS.get(name, "Tensor")


def test_a_quality_to_be_small_has_a_volume_from_the_dense_value_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a reference of the task's own the volume counts from half a unit worse than the dense
    model.
    """
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                *overrides("regression"),
                *SMALL,
                "study.n_trials=3",
                "phases.confirm.baselines=[]",
            ]
        )
        == 0
    )
    assert "0.0000 of the confirmed front" not in capsys.readouterr().out
