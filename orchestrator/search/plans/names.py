"""The files of a finished plan.

Exported files have names of their own: see `orchestrator/export/formats.py`.
"""

from __future__ import annotations

PLAN = "plan.json"
WEIGHTS = "weights.safetensors"
