"""Compensation in closed form: what removed units carried is folded into their consumers."""

from lightning_modules.pruning.compensation.sequential import Compensated, Compensator

__all__ = ["Compensated", "Compensator"]
