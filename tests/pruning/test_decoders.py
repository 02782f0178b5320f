"""Decoders and encoders of Hugging Face, the padded attention of torch, and layers of speech."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import apart, plan, randomise
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_modules.errors import ConfigError
from lightning_modules.models import SpeechNet, TextEncoder, hugging_face
from lightning_modules.models.speech import _BothWays
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.inputs import Inputs, run
from lightning_modules.pruning.masks import masked
from lightning_modules.pruning.removal import rebuild, remove

WIDE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 32}
LLAMA = {**WIDE, "num_key_value_heads": 2, "intermediate_size": 24, "tie_word_embeddings": True}
BERT = {**WIDE, "intermediate_size": 24, "num_labels": 3}
TOKENS = {
    "input_ids": torch.arange(14).reshape(2, 7),
    "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
}
SPEECH = {"features": torch.randn(2, 7, 4), "lengths": torch.tensor([7, 4])}
CASES: dict[str, tuple[Any, dict[str, Tensor], dict[str, int]]] = {
    "gpt2": (
        lambda: hugging_face("language_model", "gpt2", **WIDE),
        TOKENS,
        {"transformer.wte": 16, "transformer.h.0.attn.c_attn": 4, "transformer.h.0.mlp.c_fc": 64},
    ),
    "llama": (
        lambda: hugging_face("language_model", "llama", **LLAMA),
        TOKENS,
        {
            "model.embed_tokens": 16,
            "model.layers.0.self_attn.q_proj": 2,
            "model.layers.0.mlp.gate_proj": 24,
        },
    ),
    "bert": (
        lambda: hugging_face("classifier", "bert", **BERT),
        TOKENS,
        {
            "bert.embeddings.word_embeddings": 16,
            "bert.encoder.layer.0.attention.self.query": 4,
            "bert.encoder.layer.0.intermediate.dense": 24,
            "bert.pooler.dense": 16,
        },
    ),
    "padded": (
        lambda: TextEncoder(3, 32, 7, width=16, layers=1),
        TOKENS,
        {"embedding": 16, "encoder.layers.0.self_attn": 4, "encoder.layers.0.linear1": 32},
    ),
    "gru": (
        lambda: SpeechNet(3, "gru", 4, width=5, layers=2),
        SPEECH,
        {"front": 5, **{f"layers.{i}.{way}wards": 5 for i in (0, 1) for way in ("for", "back")}},
    ),
}


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [("gpt2", WIDE, "transformer.h"), ("llama", LLAMA, "model.layers")],
)
def test_whole_layers_of_decoders_are_units(
    name: str, options: dict[str, Any], layers: str
) -> None:
    """They are called with masks, positions and caches beside the hidden states."""
    torch.manual_seed(0)
    made = hugging_face("language_model", name, **{**options, "num_hidden_layers": 2})
    model = randomise(made)
    structure = discover(model.eval(), Inputs((), TOKENS), depth=True)
    blocks = [group.name for group in structure.groups if group.kind == "block"]
    assert blocks == [f"{layers}.0", f"{layers}.1"]
    keep = structure.full()
    keep[structure.groups[-2].units] = False
    small = remove(model, structure, keep)
    assert apart(_outputs(small, TOKENS), _outputs(masked(model, structure, keep), TOKENS)) < 1e-5
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_groups_that_are_removed_compute_what_masked_ones_do(name: str) -> None:
    make, inputs, sizes = CASES[name]
    torch.manual_seed(0)
    model = randomise(make()).eval()
    structure = discover(model, Inputs((), inputs))
    assert structure.source == "export"
    assert {group.name: group.size for group in structure.groups} == sizes
    exact = [place for place, group in enumerate(structure.groups) if group.mask_exact]
    keep = plan(structure, np.random.default_rng(0), exact)
    small = remove(model, structure, keep)
    assert apart(_outputs(small, inputs), _outputs(masked(model, structure, keep), inputs)) < 1e-4
    again = rebuild(randomise(make()), small.state_dict())
    assert apart(_outputs(again, inputs), _outputs(small, inputs)) == 0.0


def _outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    outputs = run(model, Inputs((), inputs))
    return [outputs if isinstance(outputs, Tensor) else outputs["logits"]]


@pytest.mark.parametrize(("kind", "torchs"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_both_ways_is_torchs_bidirectional_layer_on_a_packed_sequence(
    kind: str, torchs: type[nn.RNNBase]
) -> None:
    ours, packed = _BothWays(kind, 3, 4), torchs(3, 4, batch_first=True, bidirectional=True)
    for suffix, part in (("", ours.forwards), ("_reverse", ours.backwards)):
        for name, weight in part.named_parameters():
            getattr(packed, name + suffix).data.copy_(weight)
    x, lengths = torch.randn(2, 6, 3), torch.tensor([6, 2])
    steps = torch.arange(6)
    inside = steps < lengths[:, None]
    mirrored = torch.where(inside, lengths[:, None] - 1 - steps, steps)
    expected, _ = packed(pack_padded_sequence(x, lengths, True))
    expected, _ = pad_packed_sequence(expected, True)
    torch.testing.assert_close(ours(x, mirrored)[inside], expected[inside])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gtp2"}, r"a kind of network that transformers has.*'gtp2'; nearest: gpt2"),
        ({"name": "gpt2", "n_layers": 2}, r"of gpt2 has no 'n_layers'; nearest: n_layer"),
        ({"name": "llama", "hidden_size": 30}, r"transformers cannot build .*multiple"),
        ({}, r"either model.name, as gpt2, or model.folder; got name=None folder=None"),
        ({"folder": "nowhere"}, r"must hold config.json.*nowhere has none"),
    ],
)
def test_what_transformers_does_not_have_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        hugging_face("language_model", **arguments)


def test_a_folder_gives_the_network_with_its_weights(tmp_path: Any) -> None:
    saved = hugging_face("language_model", "gpt2", **WIDE).eval()
    saved.save_pretrained(tmp_path)
    read = hugging_face("language_model", folder=str(tmp_path))
    assert apart(_outputs(read, TOKENS), _outputs(saved, TOKENS)) == 0.0
