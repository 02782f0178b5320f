"""The files of a finished plan.

Exported files have names of their own: see `orchestrator/export/formats.py`.
"""

from __future__ import annotations

PLAN = "plan.json"
WEIGHTS = "weights.safetensors"
RECORDS = "confirm"
"""Folder of a study with the measurements of each seed of its confirmed models."""
