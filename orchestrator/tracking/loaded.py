"""What `mlflow.pyfunc.load_model` gives of a registered model: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.load import load_pruned


class Loaded:
    """A pruned network for MLflow."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Outputs as arrays, in the containers that the network gives them in."""
        array = np.asarray(model_input)
        with torch.no_grad():
            return _arrays(self._network(torch.from_numpy(np.ascontiguousarray(array))))


def _load_pyfunc(path: str) -> Loaded:
    """MLflow calls it by this name with the folder of the model."""
    return Loaded(load_pruned(path))


def _arrays(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.numpy()
    if isinstance(output, Mapping):
        return {name: _arrays(value) for name, value in output.items()}
    return [_arrays(value) for value in output]
