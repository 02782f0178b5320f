"""Recurrent layers with fewer hidden units or inputs."""

from __future__ import annotations

from torch import Tensor, nn

GATES = {"LSTM": 4, "GRU": 3}
"""Rows of the input weights per hidden unit, by the layer's mode; plain RNNs have one."""


def resize(layer: nn.RNNBase) -> None:
    """Bring, in place, the sizes of a recurrent layer in line with its weights, which were cut.

    The list of weights that the layer runs on is rebuilt as well.
    """
    weight = layer.weight_ih_l0
    assert isinstance(weight, Tensor)
    gates = GATES.get(layer.mode, 1)
    layer.hidden_size = weight.shape[0] // gates
    layer.input_size = weight.shape[1]
    if layer._parameters.keys() >= set(layer._flat_weights_names):
        layer._init_flat_weights()


def resize_cell(cell: nn.RNNCellBase) -> None:
    """Does the same as `resize` for the cell of a single time step."""
    cell.input_size = cell.weight_ih.shape[1]
    cell.hidden_size = cell.weight_hh.shape[1]
