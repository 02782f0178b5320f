"""Hidden units of recurrent layers: one index of the hidden state, through all gates, layers and
directions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import apart, outputs, plan, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.removal import rebuild, remove
from lightning_modules.pruning.structure import Structure

STEPS, INPUTS, HIDDEN = 5, 6, 8


def _last(out: Tensor, state: Any) -> Tensor:
    return out[-1]


def _mean(out: Tensor, state: Any) -> Tensor:
    return out.mean(0)


def _state(out: Tensor, state: Any) -> Tensor:
    hidden = state[0] if isinstance(state, tuple) else state
    return hidden[-1]


def _both(out: Tensor, state: Any) -> Tensor:
    """The last states of the two directions, side by side."""
    hidden = state[0] if isinstance(state, tuple) else state
    return torch.cat([hidden[-2], hidden[-1]], 1)


def _all_states(out: Tensor, state: Any) -> Tensor:
    return torch.cat([*(part.transpose(0, 1).flatten(1) for part in state), out[0]], 1)


class Net(nn.Module):
    """A linear layer, a recurrent one, a head; input (batch, time, features)."""

    def __init__(
        self,
        kind: type[nn.RNNBase],
        read: Callable[[Tensor, Any], Tensor],
        width: int,
        **options: Any,
    ) -> None:
        super().__init__()
        self.before = nn.Linear(4, INPUTS)
        self.rnn = kind(INPUTS, HIDDEN, **options)
        self.read = read
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.before(x).relu()
        if not self.rnn.batch_first:
            x = x.transpose(0, 1)
        if lengths is None:
            out, state = self.rnn(x)
        else:
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, self.rnn.batch_first, enforce_sorted=False
            )
            out, state = self.rnn(packed)
            out = nn.utils.rnn.pad_packed_sequence(out, self.rnn.batch_first)[0]
        return self.head(self.read(out.transpose(0, 1) if self.rnn.batch_first else out, state))


CASES: dict[str, Callable[[], Net]] = {
    "lstm last": lambda: Net(nn.LSTM, _last, 8, batch_first=True),
    "lstm mean, time first": lambda: Net(nn.LSTM, _mean, 8),
    "lstm state, two layers": lambda: Net(nn.LSTM, _state, 8, num_layers=2, batch_first=True),
    "lstm both directions": lambda: Net(nn.LSTM, _mean, 16, bidirectional=True, batch_first=True),
    "lstm three layers, both directions": lambda: Net(
        nn.LSTM, _both, 16, num_layers=3, bidirectional=True
    ),
    "lstm all states": lambda: Net(nn.LSTM, _all_states, 48, bidirectional=True),
    "lstm without bias": lambda: Net(nn.LSTM, _last, 8, bias=False, num_layers=2, batch_first=True),
    "gru last": lambda: Net(nn.GRU, _last, 8),
    "gru state, two layers": lambda: Net(nn.GRU, _state, 8, num_layers=2, batch_first=True),
    "gru both directions": lambda: Net(
        nn.GRU, _both, 16, num_layers=2, bidirectional=True, batch_first=True
    ),
    "gru without bias": lambda: Net(nn.GRU, _mean, 8, bias=False),
    "tanh": lambda: Net(nn.RNN, _last, 8, num_layers=2),
    "tanh both directions": lambda: Net(nn.RNN, _both, 16, bidirectional=True, batch_first=True),
    "relu": lambda: Net(nn.RNN, _mean, 8, nonlinearity="relu", batch_first=True),
    "relu, two layers without bias": lambda: Net(
        nn.RNN, _state, 8, nonlinearity="relu", num_layers=2, bias=False
    ),
}


def build(name: str) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return randomise(CASES[name]()).double().eval(), torch.randn(2, STEPS, 4, dtype=torch.float64)


def reasons(structure: Structure) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in structure.skipped}


@pytest.mark.parametrize("name", CASES)
def test_a_hidden_unit_is_removed_whole(name: str, tmp_path: Path) -> None:
    model, x = build(name)
    structure = discover(model, (x,))
    assert [(g.name, g.size, g.kind, g.mask_exact) for g in structure.groups] == [
        ("before", INPUTS, "neuron", True),
        ("rnn", HIDDEN, "recurrent", True),
    ]
    gates = {"LSTM": 4, "GRU": 3}.get(model.rnn.mode, 1)
    row = structure.table["rnn.weight_ih_l0", 0].reshape(gates, HIDDEN)
    assert (row == np.arange(INPUTS, INPUTS + HIDDEN)).all()
    rng = np.random.default_rng(0)
    directions = 1 + model.rnn.bidirectional
    for groups in ([0], [1], [0, 1]):
        keep = plan(structure, rng, groups)
        small = remove(model, structure, keep)
        assert apart(outputs(small, (x,)), outputs(masked(model, structure, keep), (x,))) < 1e-12
        lengths = torch.tensor([3, 5])
        assert (
            apart(
                outputs(small, (x, lengths)), outputs(masked(model, structure, keep), (x, lengths))
            )
            < 1e-12
        )
        inputs, hidden = (int(n) for n in structure.counts(keep))
        assert (small.rnn.input_size, small.rnn.hidden_size) == (inputs, hidden)
        below = [inputs, *[directions * hidden] * (model.rnn.num_layers - 1)]
        recurrent = sum(STEPS * gates * hidden * (width + hidden) * directions for width in below)
        linear = STEPS * 4 * inputs + small.head.weight.numel()
        cost = Cost(structure)
        assert cost.macs(structure.counts(keep)) == recurrent + linear
        assert cost.params(structure.counts(keep)) == sum(p.numel() for p in small.parameters())
    _trains_and_reloads(small, name, x, tmp_path)


def _trains_and_reloads(small: nn.Module, name: str, x: Tensor, folder: Path) -> None:
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    before = {key: p.detach().clone() for key, p in small.named_parameters()}
    small.train()(x).pow(2).sum().backward()
    optimizer.step()
    assert all(
        not torch.equal(before[key], p) for key, p in small.rnn.named_parameters(prefix="rnn")
    )
    expected = outputs(small, (x,))
    save_file(small.state_dict(), folder / "weights.safetensors")
    again = rebuild(CASES[name]().double(), load_file(folder / "weights.safetensors"))
    assert apart(outputs(again, (x,)), expected) < 1e-14
    assert all(a is b for a, b in zip(again.rnn._flat_weights, again.rnn.parameters(), strict=True))
    again.float().double()(x)


def test_a_second_cut_and_a_second_discovery_see_the_smaller_layer() -> None:
    model, x = build("lstm three layers, both directions")
    structure = discover(model, (x,))
    first = plan(structure, np.random.default_rng(0))
    both = first.copy()
    alive = structure.groups[1].start + np.flatnonzero(first[structure.groups[1].units])
    both[alive[1:]] = False
    parent = remove(model, structure, first)
    chained = outputs(remove(parent, structure.restrict(first), both), (x,))
    assert apart(chained, outputs(remove(model, structure, both), (x,))) < 1e-14
    assert discover(parent, (x,)).sizes.tolist() == structure.counts(first).tolist()


def test_layers_that_feed_a_recurrent_one_lose_its_inputs() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 6)
            self.conv = nn.Conv1d(6, 7, 3, padding=1)
            self.rnn = nn.GRU(7, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.embed(x).transpose(1, 2)).relu()
            return self.head(self.rnn(x.transpose(1, 2))[1][-1])

    structure = discover(Text(), (torch.randint(0, 20, (2, 5)),))
    assert {g.name: g.size for g in structure.groups} == {"embed": 6, "conv": 7, "rnn": 8}
    assert structure.table["rnn.weight_ih_l0", 1].tolist() == list(range(6, 13))


def test_a_projected_state_and_a_state_from_outside_keep_their_sizes_and_say_so() -> None:
    class Given(nn.Module):
        def __init__(self, **options: int) -> None:
            super().__init__()
            self.before = nn.Linear(4, 6)
            self.rnn = nn.LSTM(6, 8, batch_first=True, **options)
            self.head = nn.Linear(options.get("proj_size", 8), 3)

        def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
            hx = None if h is None else (h, torch.zeros_like(h))
            return self.head(self.rnn(self.before(x), hx)[0].mean(1))

    x = torch.randn(1, 5, 4)
    projected = discover(Given(proj_size=3), (x,))
    assert not projected.groups
    assert "proj_size" in reasons(projected)["rnn"]
    assert sum(p.constant for p in projected.macs if p.tensor.startswith("rnn")) == 5 * (
        32 * 6 + 32 * 3 + 3 * 8
    )
    given = discover(Given(), (x, torch.randn(1, 1, 8)))
    assert [g.name for g in given.groups] == ["before"]
    assert "initial state" in reasons(given)["rnn"]
    assert [g.name for g in discover(Given(), (x,)).groups] == ["before", "rnn"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_packed_sequence_keeps_the_layer_whole_says_so_and_costs_its_steps(
    kind: type[nn.RNNBase],
) -> None:
    """`torch.export` refuses it; without `lengths` the same model is taken apart, see above."""
    model = Net(kind, _last, HIDDEN, batch_first=True)
    structure = discover(model, (torch.randn(2, STEPS, 4), torch.tensor([4, 3])))
    assert structure.source == "torch_pruning"
    assert structure.prunable_layers == 0
    assert "recurrent" in reasons(structure)["rnn"]
    gates = {"LSTM": 4, "GRU": 3}.get(model.rnn.mode, 1)
    recurrent = 4 * gates * HIDDEN * (INPUTS + HIDDEN)
    assert Cost(structure).macs(structure.sizes) == recurrent + STEPS * 4 * INPUTS + HIDDEN * 3


def test_a_state_handed_on_ties_the_layers_it_passes() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.GRU(4, 8, batch_first=True)
            self.decoder = nn.GRU(4, 8, batch_first=True)
            self.cell = nn.GRUCell(8, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = self.encoder(x)[1]
            out = self.decoder(x, state)[0]
            hidden = torch.zeros(x.shape[0], self.cell.hidden_size, dtype=x.dtype)
            for step in range(2):
                hidden = self.cell(out[:, step], hidden)
            return self.head(hidden)

    model, x = randomise(Translator()).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    structure = discover(model, (x,))
    assert [(g.name, g.size, g.kind) for g in structure.groups] == [
        ("encoder", 8, "recurrent"),
        ("cell", 8, "recurrent"),
    ]
    keep = plan(structure, np.random.default_rng(0))
    small = remove(model, structure, keep)
    assert apart(outputs(small, (x,)), outputs(masked(model, structure, keep), (x,))) < 1e-12
    state, own = (int(n) for n in structure.counts(keep))
    macs = 2 * 5 * 3 * state * (4 + state) + 2 * 3 * own * (state + own) + own * 3
    assert Cost(structure).macs(structure.counts(keep)) == macs
    assert remove(model, structure, keep).cell.hidden_size == own
