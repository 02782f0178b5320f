"""A real, small problem, composed as the command line composes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf
from torch import nn

from lightning_modules.data.contract import set_up
from lightning_modules.pruning.plan import Plan
from orchestrator.progress import Progress
from orchestrator.search.lab.lab import Lab
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.plans.measurement import Measurement
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.ready import make_ready
from orchestrator.search.space import Allocation
from orchestrator.search.trials.evaluate import Evaluator, trial_recipe
from orchestrator.search.trials.methods import check_method
from orchestrator.settings import Settings, load

CONF = Path(__file__).parents[2] / "conf"
TINY = [
    "model.width=8",
    "phases.train.epochs=3",
    "phases.finetune.round_steps=6",
    "threads=1",
    "tracking=none",
]


def settings_of(folder: Path, *overrides: str) -> Settings:
    """Settings of the default configuration with the small values above, everything under
    `folder`.
    """
    places = [f"study.out={folder / 'runs'}", f"study.baselines={folder / 'baselines'}"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config: Any = OmegaConf.to_container(
            hydra.compose("config", [*TINY, *places, *overrides]), resolve=True
        )
    return load({key: value for key, value in config.items() if key != "hydra"})


class Prepared:
    """Settings, data and the laboratory with its dense model trained, or read where it was trained
    before.
    """

    def __init__(self, home: Path, *overrides: str) -> None:
        self.settings = settings_of(home, *overrides)
        self.data: Any = self.settings.data.build()
        set_up(self.data)
        self.final = prepare(self.settings, self.data, Progress())
        self.lab, self.facts = self.final.lab, self.final.facts


def lab_of(folder: Path, *overrides: str) -> Lab:
    """The laboratory alone, as the search is given it: without test data."""
    return Prepared(folder, *overrides).lab


def silent(rung: int, ratio: float, metrics: Mapping[str, float]) -> None:
    return None


class Bench(Prepared):
    """One laboratory with its methods, and a way to evaluate a chain's plan in it."""

    def __init__(self, home: Path, *overrides: str) -> None:
        super().__init__(home, *overrides)
        check_method(self.settings, self.settings.space.build())
        ready = make_ready(self.settings, self.lab, _unprofiled(self.settings), Progress())
        self.space, self.context, self.methods = ready.space, ready.context, ready.methods
        self.store = PlanStore(self.settings.study.folder / "trials", self.facts)
        self.evaluator = Evaluator(self.lab, trial_recipe(self.settings, self.lab), self.store)

    def propose(self, ratio: float, **params: Any) -> Plan:
        named = {key.replace("__", "."): value for key, value in params.items()}
        return self.space.propose(self.context, {**self.space.chain(self.context, ratio), **named})

    def run(self, plan: Plan, number: int = 0) -> tuple[Measurement, nn.Module]:
        measured = self.evaluator(plan, number, silent)
        finished = {plan.number: plan for plan in self.store.finished()}
        return measured, self.evaluator.inherited(finished.get(number)).model


def _unprofiled(settings: Settings) -> Any:
    """The space without a profile, which these plans do not need and which takes a second."""
    space = settings.space.build()
    return replace(space, equal_loss=(0.0, 0.0)) if isinstance(space, Allocation) else space


def bench(home: Path, tmp_path: Path, *overrides: str) -> Bench:
    return Bench(home, f"study.out={tmp_path}", *overrides)
