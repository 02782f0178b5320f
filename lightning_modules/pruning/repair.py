"""Brings the numbers that modules hold beside their tensors in line with the tensors' shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_modules.pruning.attention import head_count, parts, slim
from lightning_modules.pruning.recurrent import resize, resize_cell
from lightning_modules.pruning.spellings import respell, retransposed
from lightning_modules.pruning.structure import AttentionUnit


def repair(model: nn.Module, attention: AttentionUnit = "head") -> None:  # noqa: C901 - a branch per kind of module
    """Bring every attribute in line with the tensors, in place.

    Modules whose tensors still fit are not touched. Ratios never change: channels per group of a
    convolution or norm, and the width of a head, or the number of heads if `attention` is
    "head_dim". They are read off the attributes, which still describe the sizes before the cut.
    """
    for module in model.modules():
        if isinstance(module, _ConvNd):
            _conv(module)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = _weight_shape(module)
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


def _weight_shape(module: nn.Module) -> torch.Size:
    """The shape of a layer's weight, also where it is computed from other tensors when it is
    needed: by a parametrisation, or by a hook that leaves the last one as an attribute.
    """
    holder = module
    parametrised: Any = getattr(module, "parametrizations", ())
    if "weight" in parametrised:
        holder = parametrised["weight"]
    tensors = []
    for name, tensor in holder._parameters.items():
        if tensor is not None and name != "bias":
            tensors.append(tensor)
    return max(tensors, key=Tensor.numel).shape


def _conv(conv: _ConvNd) -> None:
    first, second = _weight_shape(conv)[:2]
    transposed = isinstance(conv, _ConvTransposeNd)
    # the first dimension of a transposed convolution's weight is its inputs
    first_before = conv.in_channels if transposed else conv.out_channels
    groups = first * conv.groups // first_before if conv.groups > 1 else 1
    conv.groups = groups
    if transposed:
        conv.in_channels = first
        conv.out_channels = second * groups
    else:
        conv.out_channels = first
        conv.in_channels = second * groups


def _channel_norm(norm: _NormBase) -> None:
    tensor = norm.weight if norm.weight is not None else norm.running_mean
    if isinstance(tensor, Tensor):
        norm.num_features = tensor.numel()


def _group_norm(norm: nn.GroupNorm) -> None:
    if norm.weight is None:
        return
    channels = norm.weight.numel()
    if norm.num_channels == channels:
        return
    if norm.num_groups > 1:
        norm.num_groups = channels * norm.num_groups // norm.num_channels
    norm.num_channels = channels


def _layer_norm(norm: nn.LayerNorm | nn.RMSNorm) -> None:
    if norm.weight is not None:
        norm.normalized_shape = tuple(norm.weight.shape)


def _encoder(encoder: nn.TransformerEncoder) -> None:
    """Switches nested tensors off where a layer has no fast path, which they need in all layers."""
    for layer in encoder.layers:
        attention = getattr(layer, "self_attn", None)
        if isinstance(attention, nn.MultiheadAttention) and not attention._qkv_same_embed_dim:
            encoder.use_nested_tensor = False


def _known_models(module: nn.Module, attention: AttentionUnit) -> None:
    """The numbers that other people's transformers use in their forward pass."""
    heads = head_count(module)
    qkv = getattr(module, "qkv", None)
    if heads is not None and isinstance(qkv, nn.Linear):
        count, (width,) = heads
        rows = qkv.weight.shape[0] // 3
        if attention == "head":
            _set(module, parts(rows, width), "num_heads")
        elif parts(rows, count) != width:
            _set(module, rows // count, "head_dim")
            # The fused kernel scales by the width that it sees, the readable path by `scale`,
            # which is the dense model's.
            _set(module, False, "fused_attn")
        _set(module, rows, "attn_dim")
    else:
        respell(module)
        retransposed(module)
    patches = getattr(module, "conv_proj", None)
    if isinstance(patches, nn.Conv2d):
        _set(module, patches.weight.shape[0], "hidden_dim")
    patches = getattr(getattr(module, "patch_embed", None), "proj", None)
    if isinstance(patches, nn.Conv2d):
        _set(module, patches.weight.shape[0], "embed_dim", "num_features", "head_hidden_size")


def _set(module: nn.Module, value: int, *names: str) -> None:
    """Set those of the attributes that the module has as whole numbers."""
    for name in names:
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, value)
