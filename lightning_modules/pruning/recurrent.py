"""Recurrent layers with fewer hidden units or inputs."""

from __future__ import annotations

from torch import Tensor, nn


def resize(layer: nn.RNNBase) -> None:
    """Mend, in place, the sizes of a recurrent layer whose weights were cut, and the list of weights it runs on."""
    weight = layer.weight_ih_l0
    assert isinstance(weight, Tensor)
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    layer.hidden_size, layer.input_size = weight.shape[0] // gates, weight.shape[1]
    if all(name in layer._parameters for name in layer._flat_weights_names):
        layer._init_flat_weights()


def resize_cell(cell: nn.RNNCellBase) -> None:
    """The same for a single step."""
    cell.input_size, cell.hidden_size = cell.weight_ih.shape[1], cell.weight_hh.shape[1]
