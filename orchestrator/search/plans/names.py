"""The files of a finished plan. What it exports has names of its own: see
`orchestrator/export/formats.py`.
"""

from __future__ import annotations

PLAN, WEIGHTS = "plan.json", "weights.safetensors"
