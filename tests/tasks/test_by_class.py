"""Tasks tell the quality of each class after a validation, and log none of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from lightning_modules.recipe import Recipe
from lightning_modules.tasks import Classification, Segmentation
from lightning_modules.tasks.contract import build_task, by_class_of
from lightning_modules.tasks.outside import outside_trainer

LOGITS = torch.eye(3)[[0, 0, 1, 2]]
TARGETS = torch.tensor([0, 1, 1, 1])


def validated(task: LightningModule, batch: Any) -> dict[str, Any]:
    with outside_trainer(task) as logged:
        task.validation_step(batch, 0)
        task.on_validation_epoch_end()
    return logged


def test_a_classification_tells_the_recall_of_each_class() -> None:
    task = Classification(nn.Identity(), 3, class_names=["cat", "dog", "eel"])
    assert by_class_of(task) == {}
    logged = validated(task, (LOGITS, TARGETS))
    assert by_class_of(task) == pytest.approx({"cat": 1.0, "dog": 1 / 3, "eel": 0.0})
    assert set(logged) == set(Classification.directions)


def test_a_segmentation_tells_the_iou_of_each_class() -> None:
    task = Segmentation(nn.Identity(), 3)
    maps = LOGITS.T.reshape(1, 3, 2, 2)
    logged = validated(task, (maps, TARGETS.reshape(1, 2, 2)))
    assert by_class_of(task) == pytest.approx({"0": 1 / 2, "1": 1 / 3, "2": 0.0})
    assert set(logged) == set(Segmentation.directions)


class Named:
    num_classes = 3

    def __init__(self, classes: Any) -> None:
        self.classes = classes


def class_names(classes: Any) -> list[str]:
    recipe = Recipe("lightning_modules.tasks.Classification", {})
    task: Any = build_task(recipe, nn.Identity(), Named(classes))
    return task.class_names


def test_classes_have_the_names_that_the_data_has() -> None:
    assert class_names(["cat", "dog", "eel"]) == ["cat", "dog", "eel"]
    # one name for three classes is none; other data means something else by the word
    assert class_names(["cat"]) == class_names(True) == ["0", "1", "2"]


def test_what_is_no_mapping_tells_no_class() -> None:
    task = nn.Module()
    task.by_class = nn.Identity()
    assert by_class_of(task) == {}
