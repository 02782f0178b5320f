"""Criteria: how much each unit is worth. One file per idea; a config names the class by `_target_`."""

from lightning_modules.pruning.criteria.contract import Calibration, Criterion
from lightning_modules.pruning.criteria.magnitude import Magnitude
from lightning_modules.pruning.criteria.random import Random

__all__ = ["Calibration", "Criterion", "Magnitude", "Random"]
