"""One small net per rule: which units there are, what stays whole, and why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from models import Hopeless, build, case, plan
from torch import Tensor, nn

from lightning_modules.errors import DiscoveryError
from lightning_modules.pruning.cost import Cost
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Structure


def sizes(structure: Structure) -> dict[str, int]:
    return {group.name: group.size for group in structure.groups}


def reasons(structure: Structure) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in structure.skipped}


class Body(nn.Module):
    """A convolution to 8 channels, something in between, a convolution to 2."""

    def __init__(self, between: nn.Module | None = None, channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.between = between or nn.Identity()
        self.head = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.first(x)))


class Between(nn.Module):
    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def found(function, channels: int = 8) -> Structure:  # type: ignore[no-untyped-def]
    return discover(Body(Between(function), channels), (torch.randn(1, 3, 8, 8),))


def test_equal_chunks_tie_their_positions() -> None:
    structure = case("chunk_add").structure
    assert sizes(structure) == {"wide": 8}
    assert structure.table["wide.weight", 0].tolist() == [*range(8), *range(8)]


def test_flatten_repeats_ids() -> None:
    structure = case("flatten").structure
    assert sizes(structure) == {"conv": 6, "hidden": 10}
    assert structure.table["hidden.weight", 1].tolist() == np.repeat(np.arange(6), 16).tolist()


def test_concatenation_mixes_ids() -> None:
    structure = case("unet").structure
    groups = {group.name: group for group in structure.groups}
    row = structure.table["mix1.0.weight", 1]
    up, skip = groups["up1"].units, groups["down1.0"].units
    assert row.tolist() == [*range(up.start, up.stop), *range(skip.start, skip.stop)]
    assert structure.table["up1.weight", 1].tolist() == list(range(up.start, up.stop))


def test_a_depthwise_channel_takes_its_multiples_along_and_a_conv_group_is_one_unit() -> None:
    structure = case("multiplier").structure
    assert sizes(structure) == {"first": 8, "point": 4}
    assert structure.table["depthwise.weight", 0].tolist() == np.repeat(np.arange(8), 2).tolist()
    assert [group.kind for group in structure.groups] == ["channel", "conv_group"]


def test_a_module_called_twice_ties_its_inputs_to_its_outputs() -> None:
    assert sizes(case("shared").structure) == {"first": 8}


def test_a_residual_to_the_input_is_frozen_with_its_reason() -> None:
    structure = case("input_residual").structure
    assert sizes(structure) == {"inner": 8}
    assert "model's input" in reasons(structure)["outer"]
    assert "model's output" in reasons(structure)["head"]
    assert (structure.layers, structure.prunable_layers) == (3, 1)


def test_an_unknown_op_freezes_what_it_touches_and_is_named() -> None:
    structure = case("unknown").structure
    assert sizes(structure) == {"first": 8}
    assert "cumsum" in reasons(structure)["second"]


def test_norm_groups_are_units_and_a_norm_over_all_channels_is_not_mask_exact() -> None:
    structure = case("norms").structure
    assert sizes(structure) == {"first": 4, "second": 12, "third": 8}
    assert [group.mask_exact for group in structure.groups] == [True, True, False]


def test_heads_are_units_of_query_key_value_and_output() -> None:
    for name, layer in (
        ("vit", "encoder.layers.encoder_layer_0.self_attention"),
        ("timm_vit", "blocks.0.attn.qkv"),
    ):
        structure = case(name).structure
        group = next(g for g in structure.groups if g.name == layer)
        heads = 4 if name == "vit" else 3
        assert (group.kind, group.size, group.mask_exact) == ("head", heads, True)
        row = structure.table[group.members[0].tensor, 0].reshape(3, heads, -1) - group.start
        assert (row == np.arange(heads)[None, :, None]).all()


def test_a_softmax_over_channels_is_not_mask_exact_and_pixel_shuffle_ties_squares() -> None:
    structure = case("outputs").structure
    assert [(g.name, g.size, g.mask_exact) for g in structure.groups] == [
        ("stem", 8, False),
        ("wide", 6, True),
        ("fine", 4, True),
    ]
    assert structure.table["wide.weight", 0].tolist() == np.repeat(np.arange(8, 14), 4).tolist()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.relu_().sigmoid(),
        lambda x: torch.where(x > 0, x, x * 0.1),
        lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (8, 8)),
        lambda x: x.permute(0, 2, 3, 1).contiguous().movedim(-1, 1),
        lambda x: x.roll(1, 2).flip(3),
        lambda x: nn.functional.pad(x, (1, 1, 1, 1)),
        lambda x: nn.functional.interpolate(x, scale_factor=2.0),
        lambda x: x - x.mean((2, 3), keepdim=True),
        lambda x: x * x.amax((2, 3), keepdim=True).expand(-1, -1, 8, 8),
        lambda x: x[:, :, 1:],
        lambda x: torch.stack([x, -x], 2).sum(2),
        lambda x: x.unsqueeze(1).squeeze(1).clone().to(x.dtype),
        lambda x: 1.0 + x / 2.0,
        lambda x: x + torch.zeros_like(x).exp(),
        lambda x: torch.max(x, -x).clamp(min=0.1).exp(),
    ],
)
def test_ops_that_leave_channels_alone_leave_them_prunable(function) -> None:  # type: ignore[no-untyped-def]
    structure = found(function)
    assert [(g.name, g.size, g.mask_exact) for g in structure.groups] == [("first", 8, True)]


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda x: x.roll(1, 1), "roll"),
        (lambda x: x.flip(1), "flip"),
        (lambda x: x[:, torch.arange(7, -1, -1)], "index"),
        (lambda x: torch.cat([x[:, :3], x[:, 3:]], 1), "slice"),
        (lambda x: torch.cat(x.split([3, 5], 1), 1), "split"),
        (lambda x: x + torch.ones(8, 1, 1), "constant|fixed"),
        (lambda x: x.view(x.shape[0], 8, 64).view(x.shape[0], 8, 8, 8), "verification"),
    ],
)
def test_sizes_written_in_the_program_freeze_channels(function, word: str) -> None:  # type: ignore[no-untyped-def]
    structure = found(function)
    assert not structure.groups
    assert any(part in reasons(structure)["first"] for part in word.split("|"))


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (lambda x: x.softmax(1), 8),
        (lambda x: x / (x * x), 8),
        (lambda x: nn.functional.normalize(x, dim=1), 8),
        (lambda x: x - x.mean(1, keepdim=True), 8),
        (lambda x: x * x.amax(1, keepdim=True), 8),
        (lambda x: x / x.sigmoid().sum(1, keepdim=True), 8),
    ],
)
def test_reductions_over_channels_are_prunable_but_not_mask_exact(function, channels: int) -> None:  # type: ignore[no-untyped-def]
    structure = found(function, channels)
    assert [(g.size, g.mask_exact) for g in structure.groups] == [(8, False)]


def test_an_instance_norm_without_weights_keeps_its_channels_and_says_so() -> None:
    structure = discover(Body(nn.InstanceNorm2d(8)), (torch.randn(1, 3, 8, 8),))
    assert "affine=True" in reasons(structure)["first"]


def test_einsum_of_two_operands_is_a_product() -> None:
    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.einsum("bic,bjc->bij", self.left(x), self.right(x)))

    structure = discover(Mix(), (torch.randn(2, 5, 6),))
    assert sizes(structure) == {"left": 8}
    product = next(p for p in structure.macs if p.name == "einsum")
    assert product.constant * len(product.factors[0]) == 5 * 5 * 8


def test_a_tied_embedding_is_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner = nn.Embedding(20, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(self.embed(x)))

    model = Tied()
    structure = discover(model, (torch.randint(0, 20, (2, 5)),))
    assert sizes(structure) == {"embed": 8}
    small = remove(model, structure, plan(structure, np.random.default_rng(0)))
    assert small.head.weight is small.embed.weight
    assert small(torch.randint(0, 20, (2, 5))).shape == (2, 5, 20)


def test_channel_shuffle_ties_across_its_groups() -> None:
    structure = discover(Body(nn.ChannelShuffle(2)), (torch.randn(1, 3, 8, 8),))
    assert structure.table["first.weight", 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert structure.table["head.weight", 1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_glu_ties_halves_and_prelu_follows() -> None:
    structure = discover(Body(nn.Sequential(nn.PReLU(8), nn.GLU(1)), 4), (torch.randn(1, 3, 8, 8),))
    assert sizes(structure) == {"first": 4}
    assert structure.table["between.0.weight", 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_user_written_attention_keeps_its_heads_and_says_so() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(6, 24)
            self.out = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(mixed.transpose(1, 2).flatten(2))

    structure = discover(Attention(), (torch.randn(2, 5, 6),))
    assert not structure.groups
    assert "attention head" in reasons(structure)["qkv"]


def test_a_model_that_does_not_export_goes_through_the_dependency_graph() -> None:
    structure = case("branching").structure
    assert structure.source == "torch_pruning"
    assert sizes(structure) == {"first": 4, "hidden": 12}
    assert [group.mask_exact for group in structure.groups] == [True, False]
    assert "output" in reasons(structure)["head"]


def test_a_model_that_nothing_can_follow_is_an_error_with_both_reasons() -> None:
    with pytest.raises(DiscoveryError, match=r"torch\.export: .*torch-pruning: "):
        discover(Hopeless(), (torch.randn(2, 4),))


def test_names_are_unique_and_ids_contiguous_in_graph_order() -> None:
    for name in ("unet", "small_vgg", "mobilenet_short", "vit"):
        structure = case(name).structure
        starts = [group.start for group in structure.groups]
        assert starts == np.cumsum([0, *(group.size for group in structure.groups)])[:-1].tolist()
        assert len({group.name for group in structure.groups}) == len(structure.groups)
        model, inputs = build(name)
        again = discover(model, inputs)
        assert again.groups == structure.groups
        assert all(np.array_equal(again.table[axis], row) for axis, row in structure.table.items())


def test_a_model_that_makes_indices_of_its_floats_is_verified_on_the_example() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden = nn.Embedding(5, 6), nn.Linear(6, 8)
            self.out = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.hidden(self.table(x.long())).relu().mean(1))

    structure = discover(Rounded(), (torch.tensor([[0.0, 4.0, 2.0]]),))
    assert "hidden" in {group.name for group in structure.groups}


class MaskedInTraining(nn.Module):
    """Some samples' features become a learned mask, in training only, and by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.mask = nn.Parameter(torch.zeros(8))
        self.second = nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        if self.training and torch.rand(()) < 2.0:
            features = torch.where(torch.rand(len(x), 1) < 0.5, self.mask, features)
        return self.head(self.second(features.relu()).relu())


def test_what_breaks_in_train_mode_alone_stays_whole() -> None:
    structure = discover(MaskedInTraining(), (torch.randn(1, 4),))
    assert structure.source == "export"
    assert sizes(structure) == {"second": 6}
    assert "breaks the forward pass" in reasons(structure)["first"]


class Anchored(nn.Module):
    """Keeps what it makes for the size of an input, as YOLO's head does."""

    size: object = None
    anchors = torch.zeros(0)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(self.first(x).relu())
        if self.size != x.shape:
            self.size = x.shape
            self.anchors = torch.arange(x.shape[-1], dtype=x.dtype) + 0.5
        return features + self.anchors


def test_what_a_forward_pass_keeps_while_it_is_exported_is_taken_back() -> None:
    model = Anchored()
    structure = discover(model, (torch.randn(1, 3, 4, 4),))
    assert structure.source == "export"
    assert sizes(structure) == {"first": 8}
    # it works on copies
    assert model.size is None


class Exchanged(nn.Module):
    """Axes 1 and 2 of (batch, windows, positions, features) change places, as in MaxViT."""

    def __init__(self, op: Callable[..., Tensor], *axes: object) -> None:
        super().__init__()
        self.op = op
        self.axes = axes
        self.first = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.op(self.first(x), *self.axes))


@pytest.mark.parametrize(
    ("op", "axes"),
    [
        (torch.swapaxes, (-2, -3)),
        (torch.swapdims, (1, 2)),
        (torch.transpose, (-2, -3)),
        (torch.permute, ((0, 2, 1, 3),)),
        (torch.movedim, (1, 2)),
    ],
)
def test_axes_that_change_places_are_followed(
    op: Callable[..., Tensor], axes: tuple[object, ...]
) -> None:
    x = torch.randn(1, 3, 5, 4)
    structure = discover(Exchanged(op, *axes), (x,))
    assert sizes(structure) == {"first": 6}
    assert Cost(structure).macs(structure.sizes) == 15 * (4 * 6 + 6 * 2)
