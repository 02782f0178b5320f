"""The files of a finished plan."""

from __future__ import annotations

PLAN, WEIGHTS, INT8 = "plan.json", "weights.safetensors", "model.int8.onnx"
