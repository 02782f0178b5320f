"""A real, small problem, composed as the command line composes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf
from torch import nn

from lightning_modules.data.contract import set_up
from orchestrator.progress import Progress
from orchestrator.search.lab.prepare import prepare
from orchestrator.search.lab.problem import Problem
from orchestrator.search.plans.measurement import Measurement, Proposal
from orchestrator.search.space import Choices
from orchestrator.search.trials.evaluate import Evaluator
from orchestrator.search.trials.methods import check_method, prepare_method
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
    """Settings of the default configuration with the small values above, everything under `folder`."""
    places = [f"study.out={folder / 'runs'}", f"study.baselines={folder / 'baselines'}"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config: Any = OmegaConf.to_container(
            hydra.compose("config", [*TINY, *places, *overrides]), resolve=True
        )
    return load({key: value for key, value in config.items() if key != "hydra"})


def problem_of(folder: Path, *overrides: str) -> Problem:
    """The problem with its dense model trained, or read where it was trained before."""
    settings = settings_of(folder, *overrides)
    data = settings.data.build()
    set_up(data)
    return prepare(settings, data, Progress())


def silent(rung: int, ratio: float, metrics: Mapping[str, float]) -> None:
    return None


class Bench:
    """One problem with its methods, and a way to evaluate a chain's plan on it."""

    def __init__(self, home: Path, *overrides: str) -> None:
        self.problem = problem_of(home, *overrides)
        settings = self.problem.settings
        self.methods = {
            way.name: prepare_method(self.problem, way) for way in settings.method.choices()
        }
        terrains = {
            name: method.terrain(self.problem, None) for name, method in self.methods.items()
        }
        space = settings.space.build()
        check_method(settings, space)
        self.space = Choices(space, settings.method, terrains)
        self.terrain = next(iter(terrains.values()))
        self.evaluator = Evaluator(self.problem, self.methods, settings.study.folder / "trials")

    def propose(self, ratio: float, **params: Any) -> Proposal:
        named = {key.replace("__", "."): value for key, value in params.items()}
        return self.space.propose(self.terrain, {**self.space.chain(self.terrain, ratio), **named})

    def run(self, proposal: Proposal, number: int = 0) -> tuple[Measurement, nn.Module]:
        measured = self.evaluator(proposal, number, silent)
        parent = next(
            (found for found in self.evaluator.finished() if found.number == number), None
        )
        return measured, self.evaluator.inherited(parent).model


def bench(home: Path, tmp_path: Path, *overrides: str) -> Bench:
    return Bench(home, f"study.out={tmp_path}", *overrides)
