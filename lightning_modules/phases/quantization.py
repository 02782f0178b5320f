"""Post-training quantisation to int8 by ONNX Runtime.

The quantised model is measured as the file that would be deployed.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.pruning.inputs import Inputs

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What quantisation imports."""
ERRORS_ONLY = 3
"""ONNX Runtime's level of logging that leaves out warnings."""
LONGEST_REASON = 200
"""Characters of a foreign error that a message quotes."""


def require_packages() -> None:
    """Errors: ConfigError that says what to install, if a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"int8 needs {', '.join(missing)}; pip install 'pruning-orchestrator[int8]'"
        )


class Int8Model(nn.Module):
    """An ONNX model that is called like a torch module.

    It takes float32 and returns float32 of shape (batch, ...). It runs on the CPU and has no
    gradients.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """`threads` is by default torch's number. Errors: DataError for a file that does not load.

        Also ConfigError if a package is missing.
        """
        super().__init__()
        require_packages()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises its own kinds
            raise DataError(f"{path} must be a model for ONNX Runtime: {_first(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        feed = {self._input: x.detach().cpu().numpy()}
        outputs = self._session.run(None, feed)
        return torch.from_numpy(outputs[0]).to(x.device)


def quantise(model: nn.Module, batches: Iterable[Inputs], path: Path) -> Int8Model:
    """Write `model` to `path` as int8 ONNX and open the file.

    Weights have a scale per channel, activations one per tensor. `batches` are training inputs
    that set the ranges of the activations. Weights at zero stay zero.
    Errors: ConfigError if packages are missing, if the model takes more than one tensor, or if it
    does not export to ONNX.
    """
    require_packages()
    inputs = [_only_tensor(batch) for batch in batches]
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        int8_file = _int8_file(model, inputs, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        # the file appears under its name only when it is whole
        partial = path.with_suffix(".partial")
        partial.write_bytes(int8_file.read_bytes())
        partial.replace(path)
    return Int8Model(path)


def _int8_file(model: nn.Module, inputs: Sequence[Tensor], folder: str) -> Path:
    """Export the model into `folder` as float32 and quantise the export."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    exported = os.path.join(folder, "float.onnx")
    prepared = os.path.join(folder, "ready.onnx")
    quantised = os.path.join(folder, "int8.onnx")
    _export(model, inputs[0][:1], exported)
    quant_pre_process(exported, prepared)
    quantize_static(
        prepared,
        quantised,
        _reader(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return Path(quantised)


def _export(model: nn.Module, example: Tensor, path: str) -> None:
    model.eval()
    device = next(model.parameters()).device
    # the exporter would take a batch of one as a constant
    pair = torch.cat([example, example]).to(device)
    try:
        torch.onnx.export(
            model,
            (pair,),
            path,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["input"],
            output_names=["output"],
            verbose=False,
            external_data=False,
        )
    except Exception as error:  # the exporter raises what the model's code raises
        kind = type(error).__name__
        raise ConfigError(
            f"int8 needs a model that exports to ONNX; {kind}: {_first(error)}"
        ) from error


def _only_tensor(inputs: Inputs) -> Tensor:
    if len(inputs.args) == 1 and not inputs.kwargs and isinstance(inputs.args[0], Tensor):
        return inputs.args[0]
    raise ConfigError(
        "method.int8 quantises networks that take one tensor; this one takes more: "
        "method.int8=[false]"
    )


def _reader(batches: Iterable[Tensor]) -> Any:
    """The batches as ONNX Runtime reads them for calibration."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self._batches: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            if batch is None:
                return None
            return {"input": batch.cpu().numpy()}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the advice of exporter and quantiser, which is for those who call them by hand."""
    disabled_before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled_before)


def _first(error: Exception) -> str:
    """The first line of an error's message that is not empty."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()[:LONGEST_REASON]
    return "no message"
