"""For models that `torch.export` refuses: torch-pruning's dependency graph, read into the same axes and labels."""

from __future__ import annotations

import copy
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

from lightning_modules.pruning.discovery.labels import Ids
from lightning_modules.pruning.discovery.trace import Trace
from lightning_modules.pruning.discovery.tracer import canonical_names
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.pruning.structure import Skipped

LAYERS = (_ConvNd, nn.Linear)


def dependency_trace(model: nn.Module, inputs: Inputs) -> Trace:
    """Ties between axes as torch-pruning sees them; MACs of convolutions, linear and recurrent layers only.

    Outputs of the model are not known here: verification finds and freezes them.
    Errors: whatever torch-pruning raises.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    trace = Trace(twin, source="torch_pruning", names=canonical_names(twin))
    paths = {id(module): path for path, module in twin.named_modules()}
    _weights(trace, paths)
    inner: dict[str, Ids] = {}
    for layer, group in _groups(twin, inputs):
        if isinstance(group, Exception):
            reason = f"torch-pruning fails on it ({type(group).__name__}: {group})"
            trace.labels.freeze(_layer_axis(trace, layer, paths[id(layer)], True, inner), reason)
            continue
        root = _axis(trace, group[0].dep, paths, inner)
        for item in group if root is not None else ():
            ids = _axis(trace, item.dep, paths, inner)
            if ids is not None and root is not None and len(item.idxs) == len(item.root_idxs):
                if max(item.idxs) < len(ids) and max(item.root_idxs) < len(root):
                    trace.labels.union(ids[np.asarray(item.idxs)], root[np.asarray(item.root_idxs)])
                else:
                    trace.labels.freeze(
                        root,
                        f"torch-pruning ties it to positions that {item.dep.target.name} lacks",
                    )
    _norms(trace, paths)
    _grouped(trace, paths, inner)
    _macs(trace, paths, inputs)
    for module, path in ((m, paths[id(m)]) for m in twin.modules() if isinstance(m, nn.RNNBase)):
        trace.notes.setdefault(
            Skipped(path, f"torch-pruning does not follow the recurrent layer {path}")
        )
        for name in (n for n, p in module.named_parameters() if p.dim() > 1):
            trace.weights.setdefault(trace.names[f"{path}.{name}"])
    return trace


def _groups(model: nn.Module, inputs: Inputs) -> Iterator[tuple[nn.Module, Any]]:
    """(layer, its group or the exception that torch-pruning raised), once for layers whose outputs go together."""
    import torch_pruning as tp  # Optional at run time and slow to import: only here, only when needed.

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph()
        graph.build_dependency(model, inputs, forward_fn=lambda m, x: x.call(m), verbose=False)
        visited: set[int] = set()
        for layer in [m for m in graph.module2node if isinstance(m, LAYERS)]:
            pruner = graph.get_pruner_of_module(layer)
            if id(layer) in visited:
                continue
            try:
                outputs = list(range(pruner.get_out_channels(layer)))
                group = graph.get_pruning_group(layer, pruner.prune_out_channels, outputs)
            except Exception as error:  # Recurrent layers break its bookkeeping in several ways.
                yield layer, error
                continue
            visited.update(
                id(item.dep.target.module)
                for item in group
                if graph.is_out_channel_pruning_fn(item.dep.handler)
            )
            yield layer, group


def _weights(trace: Trace, paths: dict[int, str]) -> None:
    for module in trace.model.modules():
        if isinstance(module, LAYERS):
            name = trace.names[f"{paths[id(module)]}.weight"]
            transposed = isinstance(module, _ConvTransposeNd)
            trace.weights.setdefault(name)
            out, into = (1, 0) if transposed else (0, 1)
            trace.producers.setdefault(
                (name, out), "neuron" if isinstance(module, nn.Linear) else "channel"
            )
            trace.consumers.add((name, into))


def _axis(trace: Trace, dep: Any, paths: dict[int, str], inner: dict[str, Ids]) -> Ids | None:
    """The ids of the axis that a dependency's target loses positions from, None if it holds no tensor."""
    module, path = dep.target.module, paths.get(id(dep.target.module))
    if path is None or not any(True for _ in module.parameters(recurse=False)):
        return None
    out = "out" in getattr(dep.handler, "__name__", "")
    if isinstance(module, LAYERS):
        return _layer_axis(trace, module, path, out, inner)
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return trace.axis(trace.names[f"{path}.weight"], weight.dim() - 1, weight.shape[-1])
    return None


def _layer_axis(trace: Trace, module: Any, path: str, out: bool, inner: dict[str, Ids]) -> Ids:
    weight, transposed = trace.names[f"{path}.weight"], isinstance(module, _ConvTransposeNd)
    if not out and getattr(module, "groups", 1) > 1:
        return inner.setdefault(path, trace.labels.new(module.in_channels))
    dim = int(out) if transposed else 1 - int(out)
    ids = trace.axis(weight, dim, module.weight.shape[dim])
    if out and module.bias is not None:
        trace.labels.union(ids, trace.axis(trace.names[f"{path}.bias"], 0, len(module.bias)))
    return ids


def _norms(trace: Trace, paths: dict[int, str]) -> None:
    """Tie shift and statistics to the scale, whole norm groups to each other; layer norms reduce over their axis."""
    for module in trace.model.modules():
        if not isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm | nn.PReLU):
            continue
        names = [
            n
            for n in ("weight", "bias", "running_mean", "running_var")
            if getattr(module, n, None) is not None
        ]
        axes = []
        for name in names:
            tensor = getattr(module, name)
            key = trace.names[f"{paths[id(module)]}.{name}"]
            axes.append(trace.axis(key, tensor.dim() - 1, tensor.shape[-1]))
        for ids in axes[1:]:
            trace.labels.union(axes[0], ids)
        if axes and isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            rows = axes[0].reshape(module.num_groups, -1)
            trace.labels.union(rows[:, :1], rows[:, 1:])
        elif axes and isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            trace.labels.mark(axes[0], "inexact")


def _grouped(trace: Trace, paths: dict[int, str], inner: dict[str, Ids]) -> None:
    """Each group of a grouped convolution is one unit; depthwise ones are tied by torch-pruning already."""
    for module in trace.model.modules():
        if not isinstance(module, _ConvNd) or module.groups == 1:
            continue
        path = paths[id(module)]
        out = _layer_axis(trace, module, path, True, inner)
        if path in inner and not isinstance(module, _ConvTransposeNd):
            parts = (inner[path].reshape(module.groups, -1), out.reshape(module.groups, -1))
            rows = np.concatenate(parts, axis=1)
            trace.labels.union(rows[:, :1], rows[:, 1:])
            if rows.shape[1] > 2:
                trace.labels.mark(rows, "conv_group")
        elif not module.groups == module.in_channels == module.out_channels:
            trace.labels.freeze(
                out, "torch-pruning does not follow the inputs of this grouped convolution"
            )


def _macs(trace: Trace, paths: dict[int, str], inputs: Inputs) -> None:
    handles = []
    for module in trace.model.modules():
        if isinstance(module, LAYERS):
            handles.append(module.register_forward_hook(_counter(trace, paths[id(module)])))
        elif isinstance(module, nn.RNNBase):
            handles.append(module.register_forward_hook(_steps(trace, paths[id(module)])))
    with torch.no_grad():
        inputs.call(trace.model)
    for handle in handles:
        handle.remove()


def _counter(trace: Trace, path: str) -> Any:
    """A forward hook that records one call of a convolution or linear layer."""

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        if isinstance(module, nn.Linear):
            positions = math.prod(output.shape[:-1])
        else:
            rank = weight.dim() - 2
            source = args[0] if isinstance(module, _ConvTransposeNd) else output
            positions = math.prod(source.shape[-rank:]) * math.prod(output.shape[: -rank - 1])
        name = trace.names[f"{path}.weight"]
        labels = [trace.axes.get((name, dim), "") for dim in (0, 1)]
        if getattr(module, "groups", 1) > 1:
            labels[1] = ""
        trace.path = path
        trace.multiply(
            path, list(weight.shape[:2]), labels, positions * math.prod(weight.shape[2:]), name
        )

    return count


def _steps(trace: Trace, path: str) -> Any:
    """The same for a recurrent layer, whose input may be packed: every weight once per step."""

    def count(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        data = args[0].data if isinstance(args[0], PackedSequence) else args[0]
        trace.path = path
        for name, weight in module.named_parameters():
            if weight.dim() > 1:
                macs = math.prod(data.shape[:-1]) * weight.numel()
                trace.multiply(path, [], [], macs, trace.names[f"{path}.{name}"])

    return count
