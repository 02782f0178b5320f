"""Models to discover, cut and price: a zoo of real ones, and one small net per rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn

from lightning_modules.models import SmallVGG
from lightning_modules.pruning.structure import Keep, Structure
from tests.structures import discovered


@dataclass(frozen=True)
class Case:
    """A randomised model in double precision, its inputs (batch 2) and its structure."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    structure: Structure


class UNet(nn.Module):
    """Two levels, concatenated skips, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up2 = nn.ConvTranspose2d(16, 10, 2, stride=2)
        self.mix2 = nn.Sequential(nn.Conv2d(22, 12, 3, padding=1), nn.ReLU())
        self.up1 = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.mix1 = nn.Sequential(nn.Conv2d(14, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        deep = self.deep(nn.functional.max_pool2d(two, 2))
        two = self.mix2(torch.cat([self.up2(deep), two], 1))
        return self.head(self.mix1(torch.cat([self.up1(two), one], 1)))


class Encoder(nn.Module):
    """Tokens through `nn.TransformerEncoder` to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(tokens)).mean(1))


class ChunkAdd(nn.Module):
    """Halves of one convolution are added: channel i and i + n/2 are one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.wide(x).relu().chunk(2, 1)
        return self.head(left + right)


class Flatten(nn.Module):
    """A convolution flattened into a linear layer: each channel feeds a run of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.hidden = nn.Linear(6 * 16, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_max_pool2d(self.conv(x).relu(), 4)
        return self.head(self.hidden(x.flatten(1)).relu())


class Multiplier(nn.Module):
    """Depthwise with two outputs per channel, then a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8)
        self.point = nn.Conv2d(16, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, groups=4)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.first(x).relu()).relu()
        return self.head(self.grouped(self.point(x).relu()).relu())


class Shared(nn.Module):
    """One module called twice: its inputs and outputs are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(self.first(x).relu()).relu()).relu())


class InputResidual(nn.Module):
    """The input is added back: what produces that sum stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 3, 3, padding=1)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.outer(self.inner(x).relu()))


class Unknown(nn.Module):
    """A cumulative sum over channels: no rule, so what it touches is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).cumsum(1))


class Branching(nn.Module):
    """A Python branch on data: `torch.export` refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 16, 1, groups=4)
        self.groupnorm = nn.GroupNorm(8, 16)
        self.hidden = nn.Linear(16 * 16, 12)
        self.layernorm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        if x.sum() > 0:
            x = x + x
        x = self.groupnorm(self.grouped(self.depthwise(x))).relu()
        x = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return self.head(self.layernorm(self.hidden(x)))


class Hopeless(nn.Module):
    """Leaves torch for numpy on the way: neither tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().numpy().sum()) == 0.0:
            raise ValueError("an empty input")
        raise ValueError("a model that never runs")


class Norms(nn.Module):
    """Norm groups of four channels, instance norm, and a norm over all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.group = nn.GroupNorm(4, 16)
        self.second = nn.Conv2d(16, 12, 3)
        self.instance = nn.InstanceNorm2d(12, affine=True)
        self.third = nn.Conv2d(12, 8, 3)
        self.whole = nn.GroupNorm(1, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.second(self.group(self.first(x)).relu())).relu()
        return self.head(self.whole(self.third(x)))


class Recurrent(nn.Module):
    """An LSTM, then linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.hidden = nn.Linear(8, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.lstm(x)[0].mean(1)).relu())


class Outputs(nn.Module):
    """Outputs in a dictionary, one of them also used inside; pixel shuffle and a softmax gate on
    the way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(8, 24, 3, padding=1)
        self.fine = nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)
        self.aside = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x).relu()
        x = x * self.gate(x).softmax(1)
        fine = nn.functional.pixel_shuffle(self.wide(x), 2)
        return {"out": self.head(self.fine(fine).relu()), "aux": self.aside(x)}


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another, attention weights asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 16)
        self.right = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        right = self.right(x)
        mixed, _ = self.attention(self.left(x), right, right, need_weights=True)
        return self.head(mixed.relu())


def _timm_vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=7,
    )


def _lraspp() -> nn.Module:
    return tv.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )


def mobilenet_short() -> nn.Module:
    """MobileNetV2 in four stages instead of seven: each kind of block is there, with a stride, a
    shortcut, neither.
    """
    stages = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 1, 2]]
    return tv.mobilenet_v2(num_classes=10, inverted_residual_setting=stages)


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "unet": (UNet, (3, 16, 16)),
    "chunk_add": (ChunkAdd, (3, 8, 8)),
    "flatten": (Flatten, (3, 8, 8)),
    "multiplier": (Multiplier, (3, 12, 12)),
    "shared": (Shared, (3, 8, 8)),
    "input_residual": (InputResidual, (3, 8, 8)),
    "unknown": (Unknown, (3, 8, 8)),
    "branching": (Branching, (3, 8, 8)),
    "norms": (Norms, (3, 12, 12)),
    "recurrent": (Recurrent, (5, 6)),
    "outputs": (Outputs, (3, 8, 8)),
    "cross_attention": (CrossAttention, (5, 6)),
    "encoder": (Encoder, (7,)),
    "vit": (lambda: tv.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=7), (3, 32, 32)),
    "timm_vit": (_timm_vit, (3, 32, 32)),
}
MEDIUM: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet_short": (mobilenet_short, (3, 32, 32)),
    "small_vgg": (lambda: SmallVGG(10, width=4), (1, 32, 32)),
}
LARGE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: tv.resnet18(num_classes=10), (3, 32, 32)),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(num_classes=10), (3, 32, 32)),
    "resnet50": (lambda: tv.resnet50(num_classes=10), (3, 32, 32)),
    "resnext50": (lambda: tv.resnext50_32x4d(num_classes=10), (3, 32, 32)),
    "vgg11_bn": (lambda: tv.vgg11_bn(num_classes=10), (3, 64, 64)),
    "mobilenet_v3_small": (lambda: tv.mobilenet_v3_small(num_classes=10), (3, 64, 64)),
    "densenet121": (lambda: tv.densenet121(num_classes=10), (3, 64, 64)),
    "efficientnet_b0": (lambda: tv.efficientnet_b0(num_classes=10), (3, 64, 64)),
    "convnext_tiny": (lambda: tv.convnext_tiny(num_classes=10), (3, 64, 64)),
    "regnet_y_400mf": (lambda: tv.regnet_y_400mf(num_classes=10), (3, 64, 64)),
    "googlenet": (lambda: tv.googlenet(num_classes=10, init_weights=False), (3, 64, 64)),
    "shufflenet_v2": (lambda: tv.shufflenet_v2_x1_0(num_classes=10), (3, 64, 64)),
    "lraspp": (_lraspp, (3, 64, 64)),
}
ZOO = {**SMALL, **MEDIUM, **LARGE}


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A freshly initialised model and a batch of two."""
    make, shape = ZOO[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        x = torch.randint(0, 50, (2, *shape)) if name == "encoder" else torch.randn(2, *shape)
    return model, (x,)


def structure_of(name: str, **options: Any) -> Structure:
    """That of `build(name)`; `options` as for `discover`."""
    return discovered(f"zoo {name}", lambda: build(name), **options)


@cache
def case(name: str) -> Case:
    model, inputs = build(name)
    model = randomise(model).double().eval()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    return Case(name, model, inputs, structure_of(name))


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """No zero is left that could hide an error: layer scales, last norms of a block, heads."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if tensor.dim() > 1:
                tensor.normal_(0.0, (2.0 / tensor[0].numel()) ** 0.5, generator=generator)
            elif name.endswith(("bias", "mean")):
                tensor.normal_(0.0, 0.2, generator=generator)
            else:
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


def plan(
    structure: Structure, rng: np.random.Generator, groups: range | list[int] | None = None
) -> Keep:
    """Drop at least one unit of each of `groups` (all by default), never all of them."""
    keep = structure.full()
    for index in range(len(structure.groups)) if groups is None else groups:
        group = structure.groups[index]
        some = rng.random(group.size) < rng.uniform(0.1, 0.9)
        first, second = rng.choice(group.size, 2, replace=False)
        some[first], some[second] = True, False
        keep[group.units] = some
    return keep


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Tensors of an eval forward pass, whatever they are wrapped in; attention on its readable
    path.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return [
                t
                for t in torch.utils._pytree.tree_leaves(model.eval()(*inputs))
                if isinstance(t, Tensor)
            ]
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def apart(left: list[Tensor], right: list[Tensor]) -> float:
    """Largest difference relative to the largest value."""
    assert [t.shape for t in left] == [t.shape for t in right]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(left, right, strict=True))
