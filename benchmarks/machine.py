"""What a benchmark's numbers hang on: the machine it ran on."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from pathlib import Path


def processor() -> str:
    """As Linux names it, elsewhere the architecture."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


def machine(*more: str) -> str:
    """Processor and cores, what else the numbers hang on, and today's date."""
    return ", ".join([processor(), f"{os.cpu_count()} cores", *more, date.today().isoformat()])
