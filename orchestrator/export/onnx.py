"""ONNX files, and ONNX Runtime that runs them."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, DataError
from lightning_modules.pruning.inputs import Inputs
from orchestrator.export.flat import Flat, input_names, tensors_of
from orchestrator.files import write_atomic

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the export imports."""
ERRORS_ONLY = 3
"""ONNX Runtime's level of logging that leaves out warnings."""
LEAST_OPSET = 18
"""PyTorch's exporter writes no lower one."""
LONGEST_REASON = 200
"""Characters of a foreign error that a message quotes."""


def require_packages() -> None:
    """Errors: ConfigError that says what to install, if a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs {', '.join(missing)}; pip install 'pruning-orchestrator[onnx]'"
        )


def check_opset(opset: int | None) -> None:
    """Errors: ConfigError for an opset that cannot be written; None, PyTorch's own, always can."""
    if opset is None:
        return
    require_packages()
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or not LEAST_OPSET <= opset <= newest:
        raise ConfigError(
            f"job.opset must be a whole number from {LEAST_OPSET}, the lowest that PyTorch writes, "
            f"to {newest}, the newest that the installed onnx knows; got {opset!r}"
        )


class OnnxModel(nn.Module):
    """An ONNX model that is called like the network that it was made from.

    It runs on the CPU and has no gradients. Its outputs are a tensor, or a tuple of several.
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
            raise DataError(f"{path} must be a model for ONNX Runtime: {first(error)}") from error
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = tensors_of((args, kwargs))
        outputs = self._session.run(None, self._fed(tensors))
        found = tuple([torch.from_numpy(output).to(tensors[0].device) for output in outputs])
        return found[0] if len(found) == 1 else found

    def passes(self, inputs: Inputs) -> Callable[[], object]:
        """A function that does one forward pass on these inputs, and nothing else."""
        fed = self._fed(inputs.tensors())
        return lambda: self._session.run(None, fed)

    def _fed(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
        return dict(zip(self._inputs, arrays, strict=True))


def write_onnx(
    model: nn.Module, batches: Iterable[Inputs], path: Path, opset: int | None = None
) -> OnnxModel:
    """Write `model` to `path` as ONNX with a free batch, and open the file.

    `opset` is the version of ONNX's operators; None: PyTorch's own choice.
    Errors: ConfigError if packages are missing, or the model does not export to ONNX.
    """
    require_packages()
    (example,) = islice(batches, 1)
    with quiet_exporter(), tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.onnx"
        export_onnx(model, example, exported, opset)
        write_atomic(path, exported.read_bytes())
    return OnnxModel(path)


def export_onnx(model: nn.Module, example: Inputs, path: Path, opset: int | None = None) -> None:
    """Errors: ConfigError for a model that does not export, also not in this opset."""
    flat = Flat(model.eval(), example).eval()
    device = next(model.parameters()).device
    tensors, shapes = example_with_free_batch(example.to(device))
    with torch.no_grad():
        outputs = flat(*tensors)
    try:
        torch.onnx.export(
            flat,
            tuple(tensors),
            str(path),
            dynamo=True,
            dynamic_shapes=(tuple(shapes),),
            input_names=input_names(model, example),
            output_names=_output_names(len(outputs)),
            verbose=False,
            external_data=False,
            opset_version=opset,
        )
    except Exception as error:  # the exporter raises what the model's code raises
        kind = type(error).__name__
        raise ConfigError(
            f"the model must export to ONNX; it does not: {kind}: {first(error)}"
        ) from error

    _require_opset(path, opset)


def _require_opset(path: Path, opset: int | None) -> None:
    """Errors: ConfigError where the exporter could not convert the model, and wrote its own."""
    if opset is None:
        return
    import onnx

    versions = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    written = versions[""]
    if written != opset:
        raise ConfigError(
            f"the model must export to ONNX opset {opset}; PyTorch wrote opset {written}: give "
            f"job.opset={written}"
        )


def export_onnx_quickly(model: nn.Module, example: Inputs, path: Path) -> None:
    """As `export_onnx`, with a fixed batch: for a file that is measured and thrown away.

    PyTorch's older exporter takes a tenth of the time. What it refuses goes to the newer one.
    """
    flat = Flat(model.eval(), example).eval()
    with quiet_exporter():
        try:
            torch.onnx.export(
                flat,
                tuple(example.tensors()),
                str(path),
                dynamo=False,
                input_names=input_names(model, example),
            )
        except Exception:  # the exporter raises what the model's code raises
            export_onnx(model, example, path)


def example_with_free_batch(example: Inputs) -> tuple[list[Tensor], list[dict[int, Any]]]:
    """The tensors of two samples, and which of their axes are the batch.

    Exporters take a batch of one as a constant. Inputs without a common batch have no free axis.
    """
    if example.batch is None:
        tensors = example.tensors()
        return tensors, [{} for _ in tensors]
    tensors = example.first().repeated(2).tensors()
    batch = torch.export.Dim("batch")
    return tensors, [{0: batch} for _ in tensors]


def _output_names(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{number}" for number in range(count)]


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silences the advice of exporters, which is for those who call them by hand."""
    disabled_before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled_before)


def first(error: Exception) -> str:
    """The first line of an error's message that is not empty."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()[:LONGEST_REASON]
    return "no message"
