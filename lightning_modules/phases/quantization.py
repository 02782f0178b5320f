"""Post-training quantisation to int8 by ONNX Runtime, measured as what it is: the file that would be deployed."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.pruning.inputs import Inputs

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Errors: ConfigError that says what to install."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"int8 needs {', '.join(missing)}; pip install 'pruning-orchestrator[int8]'"
        )


class Int8Model(nn.Module):
    """A quantised model behind a module's face: float32 in, (batch, ...) float32 out, on the CPU, without gradients."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Errors: DataError for a file that ONNX Runtime does not take."""
        super().__init__()
        require_packages()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises its own kinds
            raise DataError(f"{path} must be a model for ONNX Runtime: {_first(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(
            self._session.run(None, {self._input: x.detach().cpu().numpy()})[0]
        ).to(x.device)


def quantise(model: nn.Module, batches: Iterable[Inputs], path: Path) -> Int8Model:
    """Write `model` to `path` as int8 ONNX and open it: weights per channel, activations per tensor.

    `batches` of training inputs set the activations' ranges. Weights at zero stay zero.
    Errors: ConfigError where packages are missing, the model takes more than one tensor, or does not export to ONNX.
    """
    require_packages()
    inputs = [_only_tensor(batch) for batch in batches]
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        whole, ready, done = (
            os.path.join(folder, name) for name in ("float.onnx", "ready.onnx", "int8.onnx")
        )
        _export(model, inputs[0][:1], whole)
        quant_pre_process(whole, ready)
        quantize_static(
            ready,
            done,
            _reader(inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(Path(done).read_bytes())
        partial.replace(path)
    return Int8Model(path)


def _export(model: nn.Module, example: Tensor, path: str) -> None:
    model.eval()
    pair = torch.cat([example, example]).to(
        next(model.parameters()).device
    )  # a batch of one would be fixed
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
        raise ConfigError(
            f"int8 needs a model that exports to ONNX; {type(error).__name__}: {_first(error)}"
        ) from error


def _only_tensor(inputs: Inputs) -> Tensor:
    if len(inputs.args) == 1 and not inputs.kwargs and isinstance(inputs.args[0], Tensor):
        return inputs.args[0]
    raise ConfigError(
        "method.int8 quantises networks that take one tensor; this one takes more: method.int8=[false]"
    )


def _reader(batches: Iterable[Tensor]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self._batches: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"input": batch.cpu().numpy()}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's and the quantiser's advice is for those who call them by hand."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[
        :200
    ]
