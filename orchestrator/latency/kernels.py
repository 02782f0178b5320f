"""The time of ONNX Runtime's kernels, as its own profile tells it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_modules.pruning.clone import copy_of
from lightning_modules.pruning.inputs import Inputs
from orchestrator.export.onnx import ERRORS_ONLY, export_onnx_quickly
from orchestrator.latency.timing import COLD_PASSES, COLD_WARM_UP, Pass

MICRO_TO_MILLI = 1e-3
_LAYOUT = ("ReorderInput", "ReorderOutput")
"""Nodes that change the order of channels at both ends of a model: once in a network, not in each
of its layers."""


def kernel_ms(model: nn.Module, example: Inputs, threads: int | None, evict: Pass) -> float:
    """Milliseconds of the kernels in a pass of a small model, as `cold_ms` times passes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        here = example.to(torch.device("cpu"))
        export_onnx_quickly(copy_of(model).eval(), here, path)
        events = _profile(path, here, threads, evict)
    durations: dict[str, list[float]] = defaultdict(list)
    for event in events:
        is_kernel = event["name"].endswith("_kernel_time")
        if is_kernel and event["args"]["op_name"] not in _LAYOUT:
            durations[event["name"]].append(event["dur"])
    total = 0.0
    for microseconds in durations.values():
        total += MICRO_TO_MILLI * float(np.quantile(microseconds[COLD_WARM_UP:], 0.25))
    return total


def _profile(path: Path, example: Inputs, threads: int | None, evict: Pass) -> list[Any]:
    """What ONNX Runtime records of some passes of a file, next to which the record is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    arrays = [tensor.detach().numpy() for tensor in example.tensors()]
    for _ in range(COLD_WARM_UP + COLD_PASSES):
        evict()
        session.run(None, dict(zip(names, arrays, strict=True)))
    events: list[Any] = json.loads(Path(session.end_profiling()).read_text())
    return events
