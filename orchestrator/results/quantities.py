"""Numbers as people read them."""

from __future__ import annotations

from orchestrator.costs import AXES, COSTS


def flops(count: float) -> str:
    """Three digits and a unit: 2_610_000_000 -> '2.61 GFLOPs'."""
    return _scaled(
        count, ((1e12, " TFLOPs"), (1e9, " GFLOPs"), (1e6, " MFLOPs"), (1e3, " kFLOPs")), " FLOPs"
    )


def count(number: float) -> str:
    """Three digits and a letter: 23_500_000 -> '23.5 M'."""
    return _scaled(number, ((1e9, " G"), (1e6, " M"), (1e3, " k")), "")


def percent(ratio: float) -> str:
    """0.0512 -> '5.1 %'."""
    return f"{100 * ratio:.1f} %"


def duration(seconds: float) -> str:
    """Two units at most: 8 -> '8 s', 95 -> '1 min 35 s', 4000 -> '1 h 07 min'."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def mean_and_spread(mean: float, std: float) -> str:
    """0.98123, 0.0021 -> '0.9812 ± 0.0021'."""
    return f"{mean:.4f} ± {std:.4f}"


def _scaled(number: float, units: tuple[tuple[float, str], ...], unit: str) -> str:
    for size, name in units:
        if number >= size:
            return (
                f"{number / size:.3g}{name}"
                if number < 999.5 * size
                else f"{number / size:.0f}{name}"
            )
    return f"{number:.0f}{unit}"


def axis_words(cost: str) -> str:
    """How a cost is called where people read it."""
    return COSTS[cost].words


def cost_words(cost: str, value: float) -> str:
    """A cost with its unit: 'latency_ms', 3.2 -> '3.2 ms'; counts by letters: 'params', 23_500_000
    -> '23.5 M'.
    """
    if cost in AXES:
        return flops(value)
    unit = COSTS[cost].unit
    return f"{value:.3g} {unit}" if unit else count(value)
