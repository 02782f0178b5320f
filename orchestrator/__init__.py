"""Searches how to prune a PyTorch model and hands back the Pareto front of smaller models."""

from __future__ import annotations

from typing import Any

__all__ = [
    "check",
    "compare",
    "export",
    "inspect",
    "load_exported",
    "load_int8",
    "load_pruned",
    "load_settings",
    "open_study",
    "replay",
    "report",
    "search",
    "select",
]

_WHERE = {
    "check": ("orchestrator.jobs.checked", "check"),
    "compare": ("orchestrator.jobs.compare", "compare"),
    # the package itself, which can be called
    "export": ("orchestrator.export", ""),
    "inspect": ("orchestrator.jobs.checked", "inspect"),
    "load_exported": ("orchestrator.load", "load_exported"),
    "load_int8": ("orchestrator.load", "load_int8"),
    "load_pruned": ("orchestrator.load", "load_pruned"),
    "load_settings": ("orchestrator.compose", "load_settings"),
    "open_study": ("orchestrator.jobs.study", "open_study"),
    "replay": ("orchestrator.jobs.replay", "replay"),
    # the package itself, which can be called
    "report": ("orchestrator.report", ""),
    # the package itself, which can be called
    "search": ("orchestrator.search", ""),
    "select": ("orchestrator.jobs.study", "select"),
}


def __getattr__(name: str) -> Any:
    """Imports a module only when it is asked for: `--help` must not pay for torch."""
    if name not in _WHERE:
        raise AttributeError(
            f"module 'orchestrator' has no attribute '{name}'; it has {', '.join(__all__)}"
        )
    from importlib import import_module

    where, attribute = _WHERE[name]
    module = import_module(where)
    return getattr(module, attribute) if attribute else module
