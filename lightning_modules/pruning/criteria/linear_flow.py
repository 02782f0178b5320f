"""Runs a model as the linear map that is left when norms only scale and nonlinearities pass everything."""

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
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardtanh",
    "hardswish", "tanh", "softplus", "softsign", "tanhshrink", "log_softmax", "dropout",
))
# fmt: on
_GATES = frozenset(("sigmoid", "hardsigmoid"))


class LinearFlow(TorchFunctionMode):
    """While active, on values that are not negative:

    nonlinearities return their input; a sigmoid divides it by its mean, a softmax by its sum (both as constants), so
    that gates and attention stay near 1 and still let a flow through to what computes them; batch norm multiplies
    by |scale| / sqrt(variance), other norms by |scale|; an embedding gives the mean of its rows, whatever the index.
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
            return args[0] if args else kwargs["input"]
        if name in _GATES:
            return _gate(args[0] if args else kwargs["input"])
        if name == "softmax":
            return _share(
                args[0] if args else kwargs["input"],
                kwargs.get("dim", args[1] if len(args) > 1 else -1),
            )
        if func is F.multi_head_attention_forward:
            with self:
                return _MULTI_HEAD(*args, **kwargs)
        rule = _RULES.get(func)
        return func(*args, **kwargs) if rule is None else rule(*args, **kwargs)


# its own check for overrides taken out: past it, the mode sees the softmax inside
_MULTI_HEAD = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


def _gate(x: Tensor) -> Tensor:
    mean = x.detach().mean()
    return x / torch.where(mean == 0.0, 1.0, mean)


def _share(x: Tensor, dim: int | None) -> Tensor:
    x = x.masked_fill(x == float("-inf"), 0.0)  # what a mask hides
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
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = (
            scores.masked_fill(~attn_mask, 0.0)
            if attn_mask.dtype == torch.bool
            else scores + attn_mask
        )
    return _share(scores, -1) @ value


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
    out = input if weight is None else input * _channels(weight, input)
    return out if running_var is None else out / _channels((running_var + eps).sqrt(), out)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    return input if weight is None else input * _channels(weight, input)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    return input if weight is None else input * _channels(weight, input)


def _last_axes_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    return input if weight is None else input * weight


def _embedding(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    return weight.mean(0).expand(*input.shape, -1)


def _channels(scale: Tensor, like: Tensor) -> Tensor:
    """Along axis 1 of `like`."""
    return scale.reshape(1, -1, *[1] * (like.dim() - 2))


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
