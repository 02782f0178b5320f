"""A real, small problem, composed as the command line composes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from orchestrator.progress import Progress
from orchestrator.search.prepare import prepare
from orchestrator.search.problem import Problem
from orchestrator.settings import Settings, load

CONF = Path(__file__).parents[2] / "conf"
TINY = ["model.width=8", "phases.train.epochs=3", "phases.finetune.unit_steps=6", "threads=1", "tracking=none"]


def settings_of(folder: Path, *overrides: str) -> Settings:
    """Settings of the default configuration with the small values above, everything under `folder`."""
    places = [f"study.out={folder / 'runs'}", f"study.baselines={folder / 'baselines'}"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config: Any = OmegaConf.to_container(hydra.compose("config", [*TINY, *places, *overrides]), resolve=True)
    return load({key: value for key, value in config.items() if key != "hydra"})


def problem_of(folder: Path, *overrides: str) -> Problem:
    """The problem with its dense model trained, or read where it was trained before."""
    settings = settings_of(folder, *overrides)
    data = settings.data.build()
    data.setup()
    return prepare(settings, data, Progress())
