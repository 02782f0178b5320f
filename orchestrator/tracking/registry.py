"""Finalists in MLflow's registry: a version for each, found again by the files that it has."""

from __future__ import annotations

import hashlib
import re
import tempfile
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_modules.errors import ConfigError
from orchestrator.redact import redact
from orchestrator.tracking import Finalist
from orchestrator.tracking.payload import TAG_LENGTH
from orchestrator.tracking.server import quiet_migrations

LOADER = "orchestrator.tracking.loaded"
"""The module that loads a model for `mlflow.pyfunc.load_model`; nothing is unpickled."""
_DIGEST = "files"
_ONNX = "model.onnx"
_NEEDED = {"onnx": ("onnx", "onnxruntime", "numpy"), "ours": ("torch", "pytorch-lightning")}


def check_name(name: str) -> None:
    """Errors: ConfigError for a name that the registry refuses."""
    if not isinstance(name, str) or not re.fullmatch(r"[^/:\s][^/:]*", name):
        raise ConfigError(
            f"tracking.register must name a model, without ':' and '/'; got '{name}'; "
            "use tracking.register=my_model, or null"
        )


def register(client: Any, name: str, run_id: str, finalist: Finalist) -> None:
    """Register the files of a finalist as a version of `name`, and give it its aliases.

    The same files of the same run are the same version.
    """
    from mlflow.exceptions import MlflowException

    folder = Path(finalist.folder)
    digest = _digest(folder)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    number = _registered(client, name, run_id, digest)
    if number is None:
        # files of another digest stay what they were
        source = _logged(client, run_id, folder, f"model-{digest[:8]}")
        if source is None:
            return
        made = client.create_model_version(
            name, source, run_id, {_DIGEST: digest}, description=finalist.description
        )
        number = made.version
    for alias in finalist.aliases:
        client.set_registered_model_alias(name, alias, number)


def _registered(client: Any, name: str, run_id: str, digest: str) -> str | None:
    """The version that has these files already."""
    for found in client.search_model_versions(f"run_id = '{run_id}'"):
        if found.name == name and found.tags.get(_DIGEST) == digest:
            return str(found.version)
    return None


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _logged(client: Any, run_id: str, folder: Path, name: str) -> str | None:
    """Where the model is after it was saved as MLflow has models, and sent.

    None for one that cannot be saved: its run says why, and the record of the study goes on.
    """
    with tempfile.TemporaryDirectory() as scratch, quiet_migrations(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = Path(scratch) / name
        try:
            _save(folder, saved)
        except Exception as error:  # whatever the model's own code raises
            reason = redact(f"{type(error).__name__}: {error}")[:TAG_LENGTH]
            client.set_tag(run_id, "not_registered", reason)
            return None
        client.log_artifacts(run_id, str(saved), name)
    return f"{client.get_run(run_id).info.artifact_uri}/{name}"


def _save(folder: Path, target: Path) -> None:
    """As ONNX where the folder has such a file, else as weights and plan."""
    signature, example = _interface(folder)
    if (folder / _ONNX).is_file() and all(map(find_spec, ("onnx", "onnxruntime"))):
        import mlflow.onnx
        import onnx

        mlflow.onnx.save_model(
            onnx.load(folder / _ONNX),
            str(target),
            signature=signature,
            input_example=example,
            pip_requirements=_requirements("onnx"),
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
        return
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        str(target),
        loader_module=LOADER,
        data_path=str(folder),
        signature=signature,
        input_example=example,
        pip_requirements=["pruning-orchestrator", *_requirements("ours")],
    )


def _requirements(kind: str) -> list[str]:
    return [f"{package}=={version(package)}" for package in _NEEDED[kind]]


def _interface(folder: Path) -> tuple[Any, Any]:
    """Signature and example of a model with one tensor in and one out; (None, None) of others."""
    import torch
    from mlflow.models.signature import infer_signature

    from lightning_modules.pruning.inputs import Inputs
    from orchestrator.load import load_pruned
    from orchestrator.search.plans.finished import read_plan

    inputs = Inputs.from_json(read_plan(folder)["inputs"])
    if len(inputs.args) != 1 or not isinstance(inputs.args[0], torch.Tensor) or inputs.kwargs:
        return None, None
    with torch.no_grad():
        output = inputs.call(load_pruned(folder))
    if not isinstance(output, torch.Tensor):
        return None, None
    example = inputs.args[0].numpy()
    return infer_signature(example, output.numpy()), example
