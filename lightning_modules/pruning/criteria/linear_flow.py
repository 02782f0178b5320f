"""Runs a model as a linear map: norms only scale, and nonlinearities return their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# fmt: off
_PASSING = frozenset((
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish",
    "hardtanh", "hardswish", "tanh", "softplus", "softsign", "tanhshrink", "log_softmax", "dropout",
))
# fmt: on
"""Functions that return their input while the mode is active."""
_GATES = frozenset(("sigmoid", "hardsigmoid"))
"""Functions that divide their input by its mean while the mode is active."""


class LinearFlow(TorchFunctionMode):
    """While active, makes a model linear on values that are not negative.

    Nonlinearities return their input. A sigmoid divides its input by the mean, and a softmax by the
    sum, both taken as constants: so gates and attention stay near 1 and still let a flow through to
    what computes them. Batch norm multiplies by |scale| / sqrt(variance), other norms by |scale|.
    An embedding returns the mean of its rows, whatever the index.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").rstrip("_")  # relu_ is relu in place
        if name in _PASSING:
            return _input_of(args, kwargs)
        if name in _GATES:
            return _gate(_input_of(args, kwargs))
        if name == "softmax":
            dim = args[1] if len(args) > 1 else -1
            return _share(_input_of(args, kwargs), kwargs.get("dim", dim))
        if func is F.multi_head_attention_forward:
            with self:
                return _MULTI_HEAD(*args, **kwargs)
        rule = _RULES.get(func, func)
        return rule(*args, **kwargs)


_MULTI_HEAD = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
"""torch's function without its check for overrides, so that the mode sees the softmax inside."""


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs["input"]


def _gate(x: Tensor) -> Tensor:
    """`x` over its mean, which counts as a constant."""
    mean = x.detach().mean()
    return x / torch.where(mean == 0.0, 1.0, mean)


def _share(x: Tensor, dim: int | None) -> Tensor:
    """`x` over its sum along `dim`, which counts as a constant; masked values are 0."""
    x = x.masked_fill(x == float("-inf"), 0.0)
    total = x.detach().sum(-1 if dim is None else dim, keepdim=True)
    return x / torch.where(total == 0.0, 1.0, total)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(repeats, -3)
        value = value.repeat_interleave(repeats, -3)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    scores = query @ key.transpose(-2, -1) * scale
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return _share(_hidden(scores, attn_mask), -1) @ value


def _hidden(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores under a mask, which is boolean (True = attended to) or added."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, 0.0)
    return scores + mask


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    out = _scaled(input, weight)
    if running_var is None:
        return out
    deviation = (running_var + eps).sqrt()
    return out / _channels(deviation, out)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    return _scaled(input, weight)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    return _scaled(input, weight)


def _last_axes_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    if weight is None:
        return input
    return input * weight


def _embedding(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    return weight.mean(0).expand(*input.shape, -1)


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    """`x` times a scale per channel."""
    if scale is None:
        return x
    return x * _channels(scale, x)


def _channels(scale: Tensor, like: Tensor) -> Tensor:
    """A vector laid along axis 1 of `like`."""
    after = [1] * (like.dim() - 2)
    return scale.reshape(1, -1, *after)


_RULES: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _last_axes_norm,
    torch.layer_norm: _last_axes_norm,
    F.rms_norm: _last_axes_norm,
    torch.rms_norm: _last_axes_norm,
    F.embedding: _embedding,
    F.scaled_dot_product_attention: _attention,
}
"""What replaces torch's functions while the mode is active."""
