"""Models by their own names: torchvision's and timm's."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from lightning_modules.errors import ConfigError
from lightning_modules.models.one_stage import RawMaps, one_stage
from lightning_modules.recipe import nearest

HIDDEN_INIT = ("googlenet", "inception_v3")
"""torchvision's classifiers that take `init_weights` although their builder's signature hides
it.
"""


def torchvision(
    name: str, num_classes: int, weights: str | None = None, progress: bool = False, **options: Any
) -> nn.Module:
    """`torchvision.models.<name>`: a classifier, a segmentation network or a one-stage detector.

    Of a detector it is the backbone and the head (`RawMaps`); num_classes counts the background.

    `weights` is the name in the model's weights enum, such as IMAGENET1K_V2; they are downloaded
    once. If the weights are for another number of classes, a new layer takes the place of the last
    linear layer, or of each convolution that gives class maps. Without `weights` the backbone has
    none either, unless `weights_backbone` names some.
    Errors: ConfigError for a name or weights that torchvision does not have.
    """
    from torchvision import models

    families = (models, models.segmentation, models.detection)
    known = [entry for family in families for entry in models.list_models(module=family)]
    if name not in known:
        raise ConfigError(
            "model.name must be a classifier, a segmentation network or a detector of torchvision; "
            f"got '{name}'{nearest(name, known)}"
        )
    choices = {entry.name: entry for entry in models.get_model_weights(name)}
    if weights is not None and weights not in choices:
        raise ConfigError(
            f"model.weights for {name} must be null or one of {list(choices)}; got '{weights}'"
        )
    if name in models.list_models(module=models.detection):
        return RawMaps(one_stage(name, num_classes, weights, progress=progress, **options))
    if weights is not None:
        model = models.get_model(name, weights=weights, progress=progress, **options)
        if name in models.list_models(module=models.segmentation):
            return with_maps(model, len(choices[weights].meta["categories"]), num_classes)
        return with_classes(model, num_classes)
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    if "init_weights" in accepted or name in HIDDEN_INIT:
        options.setdefault("init_weights", True)
    if "weights_backbone" in accepted:
        options.setdefault("weights_backbone", None)
    return models.get_model(name, weights=None, num_classes=num_classes, **options)


def timm(name: str, num_classes: int, pretrained: bool = False, **options: Any) -> nn.Module:
    """`timm.create_model(name)`. Errors: ConfigError if timm is missing or has no such model."""
    try:
        import timm as library
    except ImportError as error:
        raise ConfigError(
            "model=timm needs timm; install it with pip install 'pruning-orchestrator[timm]'"
        ) from error
    known = library.list_models()
    architecture = name.split(".")[0]
    if architecture not in known:
        raise ConfigError(f"model.name must be a timm model; got '{name}'{nearest(name, known)}")
    model: nn.Module = library.create_model(
        name, pretrained=pretrained, num_classes=num_classes, **options
    )
    return model


def with_classes(model: nn.Module, num_classes: int) -> nn.Module:
    """The same model, whose last linear layer has `num_classes` outputs.

    A model that has them already is not changed. Otherwise the layer is replaced by a new one.
    Errors: IndexError for a model without linear layers.
    """
    linears = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            linears.append((name, module))
    name, last = linears[-1]
    if last.out_features != num_classes:
        parent, _, leaf = name.rpartition(".")
        replacement = nn.Linear(last.in_features, num_classes)
        setattr(model.get_submodule(parent), leaf, replacement)
    return model


def with_maps(model: nn.Module, before: int, num_classes: int) -> nn.Module:
    """The same model, whose convolutions with a map for each of `before` classes are new ones.

    A model that has `num_classes` already is not changed.
    """
    if before == num_classes:
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and module.out_channels == before:
            parent, _, leaf = name.rpartition(".")
            replacement = nn.Conv2d(module.in_channels, num_classes, module.kernel_size)
            setattr(model.get_submodule(parent), leaf, replacement)
    return model
