"""What is said of an exported file that is not as fast as its FLOPs promise."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.export.parity import Exported
from orchestrator.jobs.deployed import shortfall

FILE = Exported("onnx", "model.onnx", latency_ms=4.0, dense_latency_ms=6.0)


def test_a_file_as_fast_as_its_flops_promise_is_not_spoken_of() -> None:
    assert FILE.faster == 1.5
    assert shortfall(FILE, 0.6, 1) == ""


def test_a_slow_file_is_spoken_of_with_the_remedy_that_there_is() -> None:
    words = shortfall(FILE, 0.25, 1)
    assert words.startswith("model.onnx is 1.5x as fast as the dense model, and has 4.0x fewer")
    assert "method.round_to=8" in words
    assert "round_to" not in shortfall(FILE, 0.25, 8)
    assert "round_to" not in shortfall(replace(FILE, format="pt2"), 0.25, 1)


def test_what_was_not_timed_is_not_spoken_of() -> None:
    assert shortfall(Exported("onnx", "model.onnx"), 0.25, 1) == ""
