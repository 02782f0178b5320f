"""A LightningModule as its user wrote it, with the network inside of it that is pruned.

The search prunes, copies, stores and inherits one nn.Module. Here it is `Whole`: it has every
parameter and buffer of the user's module, under the user's names, and its forward is that of the
network. So whatever lies outside of the network is trained, saved and inherited with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.clone import clone
from lightning_modules.recipe import nearest

ITSELF = "."
"""The path of a network that is the LightningModule itself."""
NEARLY_ALL = 0.9
"""Share of the parameters that the one child holds that is the network by default."""
PATH = "_path_of_pruned_network"
"""Attribute of a user's module: where its network is."""
EVAL = "_modules_in_eval_mode"
"""Attribute of a user's module: what it holds in eval mode, which training must not change."""


class Whole(nn.Module):
    """`module` with the network at the dotted path `network`.

    None takes the one child that holds nearly all parameters. A call, and hooks of it, are those of
    the network.
    Errors: ConfigError for what is no LightningModule, or has no such network.
    """

    module: LightningModule

    def __init__(self, module: LightningModule, network: str | None = None) -> None:
        super().__init__()
        if not isinstance(module, LightningModule):
            raise ConfigError(
                "model=inside prunes a network inside of a LightningModule (task=lightning "
                f"task.module=...); task.module is a {type(module).__name__}"
            )
        module.configure_model()
        path = _largest_child(module) if network is None else network
        _require_network(module, path)
        names = [name for name, part in module.named_modules() if name and not part.training]
        vars(module)[PATH] = path
        vars(module)[EVAL] = names
        # no child: its parts have the names that the user gave them, also where a part is replaced
        vars(self)["module"] = module
        for held in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[held] = vars(module)[held]

    @property
    def path(self) -> str:
        """Where the network is in the module; "." for the module itself."""
        return str(vars(self.module)[PATH])

    @property
    def prefix(self) -> str:
        """What stands before the names of the network's parts."""
        return "" if self.path == ITSELF else f"{self.path}."

    @property
    def network(self) -> nn.Module:
        return network_of(self.module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def train(self, mode: bool = True) -> Whole:
        super().train(mode)
        self.module.training = mode
        return self

    def register_forward_hook(self, hook: Callable[..., Any], **how: Any) -> RemovableHandle:
        return self.network.register_forward_hook(hook, **how)

    def register_forward_pre_hook(self, hook: Callable[..., Any], **how: Any) -> RemovableHandle:
        return self.network.register_forward_pre_hook(hook, **how)

    def around(self, network: nn.Module) -> Whole:
        """A copy with another network in the place of its own.

        Errors: ConfigError where the network is the module itself.
        """
        if self.path == ITSELF:
            raise ConfigError(
                "the network that is exported must be a part of task.module; here it is the module "
                "itself: give its layers a module of their own, and its name as task.network"
            )
        return clone(self, {id(self.network): network})


def network_of(task: LightningModule) -> nn.Module:
    """What the task's steps call: the network that is pruned."""
    path = vars(task).get(PATH)
    if path is None:
        return task.model  # type: ignore[return-value]
    return task if path == ITSELF else task.get_submodule(path)


def is_users(task: LightningModule) -> bool:
    """Whether the task is a user's own module, with its network somewhere inside."""
    return PATH in vars(task)


def pruned_part(model: nn.Module) -> nn.Module:
    """The network inside of a `Whole`; any other model is the network itself."""
    return model.network if isinstance(model, Whole) else model


def trained_of(task: LightningModule) -> nn.Module:
    """What is trained: the task's `model`, or the whole module of a user."""
    return task if is_users(task) else task.model  # type: ignore[return-value]


def in_train_mode(task: LightningModule) -> None:
    """Put all in train mode but what a user's module was built with in eval mode."""
    task.train()
    parts = dict(task.named_modules())
    for name in vars(task).get(EVAL, ()):
        if name in parts:
            parts[name].training = False


def lightning(model: nn.Module, module: Any, network: str | None = None) -> LightningModule:
    """The target of task=lightning, whose task is the `module` inside of the model.

    Errors: ConfigError for a model that has none.
    """
    raise ConfigError(
        f"task=lightning prunes a network inside of task.module; the model is a "
        f"{type(model).__name__}: take model=inside"
    )


def _largest_child(module: LightningModule) -> str:
    """The one child with nearly all parameters. Errors: ConfigError where there is none."""
    sizes = {name: _size(child) for name, child in module.named_children()}
    name = max(sizes, key=lambda child: sizes[child], default="")
    if name and sizes[name] >= NEARLY_ALL * max(1, _size(module)):
        return name
    listed = ", ".join(f"{name} ({size:,} parameters)" for name, size in sizes.items() if size)
    raise ConfigError(
        f"{type(module).__name__} has no child that holds nearly all parameters; say which network "
        f"is pruned, as in task.network=name, or task.network='{ITSELF}' for the module itself; "
        f"its children: {listed or 'none'}"
    )


def _require_network(module: LightningModule, path: str) -> None:
    """Errors: ConfigError for a path that leads to no module, or to one that cannot be called."""
    if path == ITSELF:
        return
    parts = dict(module.named_modules())
    if not path or path not in parts:
        raise ConfigError(
            f"task.network must be the path of a module inside of {type(module).__name__}; got "
            f"'{path}'{nearest(path, list(parts))}; its children: "
            f"{', '.join(name for name, _ in module.named_children())}"
        )
    if isinstance(parts[path], nn.ModuleList | nn.ModuleDict):
        raise ConfigError(
            f"task.network must be a module that is called; {path} is a "
            f"{type(parts[path]).__name__}: name a module in it, or take task.network='{ITSELF}'"
        )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
