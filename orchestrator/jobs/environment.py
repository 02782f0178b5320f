"""The versions and the machine that a study ran on."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from orchestrator.settings import Settings

_PACKAGES = ("pruning-orchestrator", "torch", "pytorch-lightning", "torchvision", "optuna", "numpy")


def environment(settings: Settings) -> dict[str, str]:
    """What a person needs to know to repeat a study: names and versions, without secrets."""
    import torch

    found = {}
    for name in _PACKAGES:
        # a checkout runs without being installed, too
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    found["python"] = platform.python_version()
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["device"] = settings.device
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    found["threads"] = str(torch.get_num_threads())
    found["seed"] = str(settings.seed)
    return found
