"""Mends the numbers that modules carry beside their tensors, from the shapes of the tensors alone."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_modules.pruning.attention import head_count, parts, slim
from lightning_modules.pruning.recurrent import resize, resize_cell
from lightning_modules.pruning.structure import AttentionUnit


def repair(model: nn.Module, attention: AttentionUnit = "head") -> None:  # noqa: C901 - a branch per kind of module
    """Bring every attribute in line with the tensors, in place; modules whose tensors still fit are not touched.

    Ratios (channels per convolution or norm group, width of a head, or their number if `attention` is "head_dim") are
    read off the attributes, which still describe the sizes before the cut; they never change.
    """
    for module in model.modules():
        if isinstance(module, _ConvNd):
            _conv(module)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _NormBase):
            _channel_norm(module)
        elif isinstance(module, nn.GroupNorm):
            _group_norm(module)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            _layer_norm(module)
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.num_embeddings, module.embedding_dim = module.weight.shape
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()
        elif isinstance(module, nn.MultiheadAttention):
            slim(module, attention)
        elif isinstance(module, nn.RNNBase):
            resize(module)
        elif isinstance(module, nn.RNNCellBase):
            resize_cell(module)
        else:
            _known_models(module, attention)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            _encoder(module)


def _conv(conv: _ConvNd) -> None:
    first, second = conv.weight.shape[:2]
    if isinstance(conv, _ConvTransposeNd):
        conv.groups = first * conv.groups // conv.in_channels if conv.groups > 1 else 1
        conv.in_channels, conv.out_channels = first, second * conv.groups
    else:
        conv.groups = first * conv.groups // conv.out_channels if conv.groups > 1 else 1
        conv.out_channels, conv.in_channels = first, second * conv.groups


def _channel_norm(norm: _NormBase) -> None:
    tensor = norm.weight if norm.weight is not None else norm.running_mean
    if isinstance(tensor, Tensor):
        norm.num_features = tensor.numel()


def _group_norm(norm: nn.GroupNorm) -> None:
    if norm.weight is not None and norm.num_channels != norm.weight.numel():
        if norm.num_groups > 1:
            norm.num_groups = norm.weight.numel() * norm.num_groups // norm.num_channels
        norm.num_channels = norm.weight.numel()


def _layer_norm(norm: nn.LayerNorm | nn.RMSNorm) -> None:
    if norm.weight is not None:
        norm.normalized_shape = tuple(norm.weight.shape)


def _encoder(encoder: nn.TransformerEncoder) -> None:
    """Nested tensors need the fast path of every layer."""
    attentions = [getattr(layer, "self_attn", None) for layer in encoder.layers]
    if any(isinstance(a, nn.MultiheadAttention) and not a._qkv_same_embed_dim for a in attentions):
        encoder.use_nested_tensor = False


def _known_models(module: nn.Module, attention: AttentionUnit) -> None:
    """Widths that the vision transformers of torchvision and timm write into their forward pass."""
    heads, qkv = head_count(module), getattr(module, "qkv", None)
    if heads is not None and isinstance(qkv, nn.Linear):
        rows, (width,) = qkv.weight.shape[0] // 3, heads[1]
        if attention == "head":
            _set(module, parts(rows, width), "num_heads")
        elif parts(rows, heads[0]) != width:
            _set(module, rows // heads[0], "head_dim")
            # The fused kernel scales by the width it sees; the readable path by `scale`, that of the dense model.
            _set(module, False, "fused_attn")
        _set(module, rows, "attn_dim")
    patches = getattr(module, "conv_proj", None)
    if isinstance(patches, nn.Conv2d):
        _set(module, patches.weight.shape[0], "hidden_dim")
    patches = getattr(getattr(module, "patch_embed", None), "proj", None)
    if isinstance(patches, nn.Conv2d):
        _set(module, patches.weight.shape[0], "embed_dim", "num_features", "head_hidden_size")


def _set(module: nn.Module, value: int, *names: str) -> None:
    for name in names:
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, value)
