"""Whether the parts of a configuration go together.

The checks take no data, so mistakes are reported before any is read.
"""

from __future__ import annotations

from lightning_modules.errors import ConfigError
from lightning_modules.phases.trainer_options import check_options
from orchestrator.search.goals import Goals, goals_of
from orchestrator.search.lab.lab import CONFIRMING_RATE, optimization
from orchestrator.search.lab.prepare import device_of
from orchestrator.search.plans.given import read_plans
from orchestrator.search.samplers import check_sampler
from orchestrator.search.trials.methods import check_method
from orchestrator.settings import Settings


def check_parts(settings: Settings) -> Goals:
    """Checks the parts, and returns what the study is after.

    Errors: ConfigError for a part that cannot be built or does not fit the others.
    """
    goals = goals_of(settings)
    phases = settings.phases
    space = settings.space.build()
    # built only to see that it can be
    settings.stopping.build()
    check_method(settings, space)
    check_sampler(settings.sampler, goals.directions)
    _check_budget(settings)
    optimization(phases.train).check()
    optimization(phases.finetune).check()
    optimization(phases.finetune, CONFIRMING_RATE).check()
    read_plans(settings)
    check_options(settings.trainer.options(), device_of(settings))
    return goals


def _check_budget(settings: Settings) -> None:
    """Errors: ConfigError for a budget in steps of training where nothing is trained."""
    if settings.study.budget is not None and settings.phases.untrained:
        raise ConfigError(
            "study.budget is shared out as steps of finetuning; with "
            "phases.finetune.round_steps=0 nothing is finetuned: take study.n_trials"
        )
