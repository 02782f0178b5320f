"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.costs import AXES, COSTS


def flops(count: float) -> str:
    """Three digits and a unit: 2_610_000_000 -> '2.61 GFLOPs'."""
    prefixes = ((1e12, " TFLOPs"), (1e9, " GFLOPs"), (1e6, " MFLOPs"), (1e3, " kFLOPs"))
    return _scaled(count, prefixes, " FLOPs")


def count(number: float) -> str:
    """Three digits and a letter: 23_500_000 -> '23.5 M'."""
    return _scaled(number, ((1e9, " G"), (1e6, " M"), (1e3, " k")), "")


def percent(ratio: float) -> str:
    """0.0512 -> '5.1 %'."""
    return f"{100 * ratio:.1f} %"


def duration(seconds: float) -> str:
    """Two units at most: 8 -> '8 s', 95 -> '1 min 35 s', 4000 -> '1 h 07 min'."""
    whole = max(0, round(seconds))
    minutes, left = divmod(whole, 60)
    if minutes == 0:
        return f"{left} s"
    if minutes < 60:
        return f"{minutes} min {left:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def mean_and_spread(mean: float, std: float) -> str:
    """0.98123, 0.0021 -> '0.9812 ± 0.0021'."""
    return f"{mean:.4f} ± {std:.4f}"


def _scaled(number: float, prefixes: tuple[tuple[float, str], ...], unit: str) -> str:
    for size, name in prefixes:
        if number >= size:
            scaled = number / size
            # three digits of 999.7 would be written as 1e+03
            digits = f"{scaled:.3g}" if number < 999.5 * size else f"{scaled:.0f}"
            return digits + name
    return f"{number:.0f}{unit}"


def axis_words(cost: str) -> str:
    """How a cost is called where people read it."""
    return COSTS[cost].words


def cost_words(cost: str, value: float) -> str:
    """A cost with its unit: 'latency_ms', 3.2 -> '3.2 ms'.

    Counts have letters: 'params', 23_500_000 -> '23.5 M'.
    """
    if cost in AXES:
        return flops(value)
    unit = COSTS[cost].unit
    if unit:
        return f"{value:.3g} {unit}"
    return count(value)


FREE_ERROR = 0.01
"""Squared error, over the variance, up to which what follows a group is as it was."""


def free_in_words(free: Mapping[str, float]) -> str:
    """The groups of whose units the others can stand in for most."""
    most = sorted(free, key=lambda name: -free[name])[:3]
    named = ", ".join([f"{percent(free[name])} of {name}" for name in most])
    return f"{named}: what follows stays the same without them, all but {percent(FREE_ERROR)}"
