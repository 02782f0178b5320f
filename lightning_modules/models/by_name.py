"""Classifiers of torchvision and timm by their own names."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.recipe import nearest


def torchvision(
    name: str, num_classes: int, weights: str | None = None, progress: bool = False, **options: Any
) -> nn.Module:
    """`torchvision.models.<name>`; `weights` is a weights enum's name such as IMAGENET1K_V2 (downloaded once).

    With weights made for another number of classes, the last linear layer is replaced by a new one.
    Errors: ConfigError for a name or weights torchvision does not have.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(
            f"model.name must be a torchvision classifier; got '{name}'{nearest(name, known)}"
        )
    if weights is not None:
        choices = [entry.name for entry in models.get_model_weights(name)]
        if weights not in choices:
            raise ConfigError(
                f"model.weights for {name} must be null or one of {choices}; got '{weights}'"
            )
        model = models.get_model(name, weights=weights, progress=progress, **options)
        return with_classes(model, num_classes)
    if "init_weights" in inspect.signature(models.get_model_builder(name)).parameters or name in (
        "googlenet",
        "inception_v3",
    ):
        options.setdefault("init_weights", True)
    return models.get_model(name, weights=None, num_classes=num_classes, **options)


def timm(name: str, num_classes: int, pretrained: bool = False, **options: Any) -> nn.Module:
    """`timm.create_model(name)`. Errors: ConfigError where timm is missing or has no such model."""
    try:
        import timm as library
    except ImportError as error:
        raise ConfigError(
            "model=timm needs timm; install it with pip install 'pruning-orchestrator[timm]'"
        ) from error
    known = library.list_models()
    if name.split(".")[0] not in known:
        raise ConfigError(f"model.name must be a timm model; got '{name}'{nearest(name, known)}")
    model: nn.Module = library.create_model(
        name, pretrained=pretrained, num_classes=num_classes, **options
    )
    return model


def with_classes(model: nn.Module, num_classes: int) -> nn.Module:
    """The same model with its last linear layer of `num_classes` outputs; untouched when it has them already."""
    name, last = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ][-1]
    if last.out_features != num_classes:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Linear(last.in_features, num_classes))
    return model
