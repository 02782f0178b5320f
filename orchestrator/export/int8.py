"""Post-training quantisation to int8 by ONNX Runtime.

The quantised model is measured as the file that would be deployed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from lightning_modules.pruning.inputs import Inputs
from orchestrator.export.onnx import OnnxModel, export_onnx, quiet_exporter, require_packages
from orchestrator.files import write_atomic


def quantise(
    model: nn.Module, batches: Iterable[Inputs], path: Path, opset: int | None = None
) -> OnnxModel:
    """Write `model` to `path` as int8 ONNX and open the file.

    Weights have a scale per channel, activations one per tensor. `batches` are training inputs
    that set the ranges of the activations. `opset` as in `write_onnx`. Weights at zero stay zero.
    Errors: ConfigError if packages are missing, or the model does not export to ONNX.
    """
    require_packages()
    inputs = list(batches)
    with quiet_exporter(), tempfile.TemporaryDirectory() as folder:
        write_atomic(path, _int8_file(model, inputs, Path(folder), opset).read_bytes())
    return OnnxModel(path)


def _int8_file(model: nn.Module, inputs: list[Inputs], folder: Path, opset: int | None) -> Path:
    """Export the model into `folder` as float32 and quantise the export."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    exported = folder / "float.onnx"
    prepared = folder / "ready.onnx"
    quantised = folder / "int8.onnx"
    export_onnx(model, inputs[0], exported, opset)
    quant_pre_process(str(exported), str(prepared))
    quantize_static(
        str(prepared),
        str(quantised),
        _reader(inputs, exported),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return quantised


def _reader(batches: Iterable[Inputs], exported: Path) -> Any:
    """The batches as ONNX Runtime reads them for calibration."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    names = [entry.name for entry in onnx.load(exported).graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self._batches: Iterator[Inputs] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            if batch is None:
                return None
            arrays = [tensor.cpu().numpy() for tensor in batch.tensors()]
            return dict(zip(names, arrays, strict=True))

    return Reader()
