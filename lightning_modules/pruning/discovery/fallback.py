"""For models that `torch.export` refuses: reads torch-pruning's dependency graph into a trace."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_modules.pruning.clone import copied
from lightning_modules.pruning.discovery.labels import Ids
from lightning_modules.pruning.discovery.trace import Trace
from lightning_modules.pruning.discovery.tracer import canonical_names
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Skipped

LAYERS = (_ConvNd, nn.Linear)
"""The layers whose outputs torch-pruning is asked to prune."""
_SCALING = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)
"""The layers with a value per channel."""


def dependency_trace(model: nn.Module, inputs: Inputs) -> Trace:
    """The ties between axes as torch-pruning sees them.

    MACs are those of convolutions, linear and recurrent layers only. The outputs of the model are
    not known here: verification finds and freezes them.
    Errors: whatever torch-pruning raises.
    """
    twin = copied(model).eval().requires_grad_(True)
    trace = Trace(twin, source="torch_pruning", names=canonical_names(twin))
    reader = _Reader(trace)
    reader.weights()
    for layer, group in _groups(twin, inputs):
        if isinstance(group, Exception):
            reason = f"torch-pruning fails on it ({type(group).__name__}: {group})"
            trace.labels.freeze(reader.layer_axis(layer, out=True), reason)
        else:
            reader.ties(group)
    reader.norms()
    reader.grouped()
    reader.macs(inputs)
    reader.recurrent()
    return trace


def _groups(model: nn.Module, inputs: Inputs) -> Iterator[tuple[nn.Module, Any]]:
    """(layer, its group or the exception that torch-pruning raised).

    Of layers whose outputs go together only the first is given.
    """
    import torch_pruning as tp  # slow to import, and needed only here

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph()
        graph.build_dependency(model, inputs, forward_fn=lambda m, x: x.call(m), verbose=False)
        visited: set[int] = set()
        for layer in [module for module in graph.module2node if isinstance(module, LAYERS)]:
            pruner = graph.get_pruner_of_module(layer)
            if id(layer) in visited:
                continue
            try:
                outputs = list(range(pruner.get_out_channels(layer)))
                group = graph.get_pruning_group(layer, pruner.prune_out_channels, outputs)
            except Exception as error:  # recurrent layers break its bookkeeping in several ways
                yield layer, error
                continue
            for item in group:
                if graph.is_out_channel_pruning_fn(item.dep.handler):
                    visited.add(id(item.dep.target.module))
            yield layer, group


class _Reader:
    """Writes layers and torch-pruning's groups into a trace.

    The inputs of grouped convolutions are no axis of a weight; they have ids of their own.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._labels = trace.labels
        self._modules = list(trace.model.modules())
        self._paths = {id(module): path for path, module in trace.model.named_modules()}
        self._grouped_inputs: dict[str, Ids] = {}

    def _name(self, module: nn.Module, tensor: str) -> str:
        """The first name of a module's parameter or buffer."""
        path = self._paths[id(module)]
        return self._trace.names[f"{path}.{tensor}"]

    def weights(self) -> None:
        """Register every layer's weight as producer and consumer."""
        for module in self._modules:
            if not isinstance(module, LAYERS):
                continue
            name = self._name(module, "weight")
            out, into = (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
            is_linear = isinstance(module, nn.Linear)
            self._trace.weights.setdefault(name)
            self._trace.producers.setdefault((name, out), "neuron" if is_linear else "channel")
            self._trace.consumers.add((name, into))

    def ties(self, group: Any) -> None:
        """Tie the positions that torch-pruning removes together."""
        root = self._axis(group[0].dep)
        if root is None:
            return
        for item in group:
            ids = self._axis(item.dep)
            if ids is None or len(item.idxs) != len(item.root_idxs):
                continue
            if max(item.idxs) < len(ids) and max(item.root_idxs) < len(root):
                positions = np.asarray(item.idxs)
                root_positions = np.asarray(item.root_idxs)
                self._labels.union(ids[positions], root[root_positions])
            else:
                target = item.dep.target.name
                reason = f"torch-pruning ties it to positions that {target} lacks"
                self._labels.freeze(root, reason)

    def _axis(self, dep: Any) -> Ids | None:
        """The ids of the axis that a dependency's target loses positions from.

        None if the target holds no tensor.
        """
        module = dep.target.module
        if id(module) not in self._paths:
            return None
        if next(module.parameters(recurse=False), None) is None:
            return None
        if isinstance(module, LAYERS):
            return self.layer_axis(module, out="out" in getattr(dep.handler, "__name__", ""))
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            return None
        return self._trace.axis(self._name(module, "weight"), weight.dim() - 1, weight.shape[-1])

    def layer_axis(self, module: Any, out: bool) -> Ids:
        """The ids of a layer's outputs, tied to its bias, or of its inputs."""
        weight = self._name(module, "weight")
        if not out and getattr(module, "groups", 1) > 1:
            path = self._paths[id(module)]
            return self._grouped_inputs.setdefault(path, self._labels.new(module.in_channels))
        transposed = isinstance(module, _ConvTransposeNd)
        dim = int(out) if transposed else 1 - int(out)
        ids = self._trace.axis(weight, dim, module.weight.shape[dim])
        if out and module.bias is not None:
            bias = self._trace.axis(self._name(module, "bias"), 0, len(module.bias))
            self._labels.union(ids, bias)
        return ids

    def norms(self) -> None:
        """Tie shift and statistics to the scale, and the channels of a norm group to one another.

        Layer norms reduce over their axis.
        """
        for module in self._modules:
            if not isinstance(module, _SCALING):
                continue
            axes = self._channel_axes(module)
            for ids in axes[1:]:
                self._labels.union(axes[0], ids)
            if axes and isinstance(module, nn.GroupNorm) and module.num_groups > 1:
                rows = axes[0].reshape(module.num_groups, -1)
                self._labels.tie(rows)
            elif axes and isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
                self._labels.mark(axes[0], "inexact")

    def _channel_axes(self, module: nn.Module) -> list[Ids]:
        """The channels of each tensor that a norm has."""
        axes = []
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            if tensor is not None:
                key = self._name(module, name)
                axes.append(self._trace.axis(key, tensor.dim() - 1, tensor.shape[-1]))
        return axes

    def grouped(self) -> None:
        """Make each group of a grouped convolution one unit.

        torch-pruning has tied depthwise ones already.
        """
        for module in self._modules:
            if not isinstance(module, _ConvNd) or module.groups == 1:
                continue
            path = self._paths[id(module)]
            out = self.layer_axis(module, out=True)
            if path in self._grouped_inputs and not isinstance(module, _ConvTransposeNd):
                inputs = self._grouped_inputs[path].reshape(module.groups, -1)
                rows = np.concatenate((inputs, out.reshape(module.groups, -1)), axis=1)
                self._labels.tie(rows)
                if rows.shape[1] > 2:
                    self._labels.mark(rows, "conv_group")
            elif not module.groups == module.in_channels == module.out_channels:
                reason = "torch-pruning does not follow the inputs of this grouped convolution"
                self._labels.freeze(out, reason)

    def recurrent(self) -> None:
        """Note that recurrent layers stay whole."""
        for module in self._modules:
            if not isinstance(module, nn.RNNBase):
                continue
            path = self._paths[id(module)]
            reason = f"torch-pruning does not follow the recurrent layer {path}"
            self._trace.notes.setdefault(Skipped(path, reason))
            for name, parameter in module.named_parameters():
                if parameter.dim() > 1:
                    self._trace.weights.setdefault(self._name(module, name))

    def macs(self, inputs: Inputs) -> None:
        """Run the model once and record the MACs of every call of a layer."""
        handles: list[RemovableHandle] = []
        for module in self._modules:
            if isinstance(module, LAYERS):
                handles.append(module.register_forward_hook(self._count_layer))
            elif isinstance(module, nn.RNNBase):
                handles.append(module.register_forward_hook(self._count_recurrent))
        with torch.no_grad():
            inputs.call(self._trace.model)
        for handle in handles:
            handle.remove()

    def _count_layer(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook that records one call of a convolution or linear layer."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        if isinstance(module, nn.Linear):
            positions = math.prod(output.shape[:-1])
        else:
            rank = weight.dim() - 2
            source = args[0] if isinstance(module, _ConvTransposeNd) else output
            places = math.prod(source.shape[-rank:])
            samples = math.prod(output.shape[: -rank - 1])
            positions = samples * places
        name = self._name(module, "weight")
        labels = [self._trace.axes.get((name, dim), "") for dim in (0, 1)]
        if getattr(module, "groups", 1) > 1:
            labels[1] = ""
        path = self._paths[id(module)]
        constant = positions * math.prod(weight.shape[2:])
        self._trace.path = path
        self._trace.multiply(path, list(weight.shape[:2]), labels, constant, name)

    def _count_recurrent(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """A forward hook for a recurrent layer, which uses every weight once per step.

        Its input may be packed.
        """
        data = args[0].data if isinstance(args[0], PackedSequence) else args[0]
        steps = math.prod(data.shape[:-1])
        path = self._paths[id(module)]
        self._trace.path = path
        for name, weight in module.named_parameters():
            if weight.dim() > 1:
                macs = steps * weight.numel()
                self._trace.multiply(path, [], [], macs, self._name(module, name))
