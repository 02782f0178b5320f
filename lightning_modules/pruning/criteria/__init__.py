"""Criteria score units. One file per idea; a config names the class by `_target_`."""

from lightning_modules.pruning.criteria.ablation import Ablation
from lightning_modules.pruning.criteria.activation import Activation, Apoz
from lightning_modules.pruning.criteria.blocks import block_scores
from lightning_modules.pruning.criteria.bn_scale import BnScale
from lightning_modules.pruning.criteria.contract import Calibration, Criterion, WeightCriterion
from lightning_modules.pruning.criteria.correlation import Correlation
from lightning_modules.pruning.criteria.cosine import Cosine
from lightning_modules.pruning.criteria.fisher import Fisher
from lightning_modules.pruning.criteria.fpgm import GeometricMedian
from lightning_modules.pruning.criteria.gradient import Gradient
from lightning_modules.pruning.criteria.grasp import Grasp
from lightning_modules.pruning.criteria.lamp import Lamp
from lightning_modules.pruning.criteria.magnitude import Magnitude
from lightning_modules.pruning.criteria.movement import Movement
from lightning_modules.pruning.criteria.random import Random
from lightning_modules.pruning.criteria.rank import Rank
from lightning_modules.pruning.criteria.second_order import SecondOrder
from lightning_modules.pruning.criteria.snip import Snip
from lightning_modules.pruning.criteria.synflow import SynFlow
from lightning_modules.pruning.criteria.taylor import Taylor

__all__ = [
    "Ablation",
    "Activation",
    "Apoz",
    "BnScale",
    "Calibration",
    "Correlation",
    "Cosine",
    "Criterion",
    "Fisher",
    "GeometricMedian",
    "Gradient",
    "Grasp",
    "Lamp",
    "Magnitude",
    "Movement",
    "Random",
    "Rank",
    "SecondOrder",
    "Snip",
    "SynFlow",
    "Taylor",
    "WeightCriterion",
    "block_scores",
]
