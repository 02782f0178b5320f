"""Models by name: torchvision's, timm's, and a small residual network of our own for trying things."""

from lightning_modules.models.by_name import timm, torchvision
from lightning_modules.models.small import SmallResNet

__all__ = ["SmallResNet", "timm", "torchvision"]
