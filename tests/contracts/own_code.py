"""Lightning code as people have it: nothing in it knows of this project."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassF1Score


class TwoTower(nn.Module):
    """An image and four numbers go in; a dict comes out."""

    def __init__(self, classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.table = nn.Sequential(nn.Linear(4, width), nn.ReLU())
        self.head = nn.Linear(3 * width, classes)

    def forward(self, image: Tensor, table: Tensor) -> dict[str, Tensor]:
        features = torch.cat([self.image(image), self.table(table)], 1)
        logits = self.head(features)
        return {"logits": logits, "confidence": logits.softmax(1).amax(1)}


class Pictures(Dataset):
    """Brighter pictures are of a higher class; the noise is from numpy's global generator."""

    def __init__(self, count: int, seed: int, augment: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 3, (count,), generator=generator)
        self.images = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
        self.images += 0.7 * self.labels[:, None, None, None]
        self.tables = torch.randn(count, 4, generator=generator) + self.labels[:, None]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        if self.augment and torch.rand(()) < 0.5:
            image = image.flip(-1) + 0.1 * float(np.random.randn())
        return {
            "image": image,
            "table": self.tables[index],
            "label": self.labels[index],
            "file": f"{index}.png",
        }


class PicturesData(LightningDataModule):
    def __init__(self, batch_size: int = 16, workers: int = 0, count: int = 96) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str | None = None) -> None:
        count = self.hparams.count
        self.train = Pictures(count, 0, augment=True)
        self.val = Pictures(48, 1, augment=False)
        self.test = Pictures(48, 2, augment=False)

    def _loader(self, part: Pictures, shuffle: bool) -> DataLoader:
        return DataLoader(
            part, self.hparams.batch_size, shuffle=shuffle, num_workers=self.hparams.workers
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val, False)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, False)


class LitTwoTower(LightningModule):
    """A temperature and class weights lie outside of the network."""

    def __init__(self, classes: int = 3, width: int = 8, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = TwoTower(classes, width)
        self.temperature = nn.Parameter(torch.ones(()))
        self.register_buffer("weights", torch.ones(classes))
        self.val_f1 = MulticlassF1Score(classes)
        self.test_f1 = MulticlassF1Score(classes)
        self.seen: list[Tensor] = []

    def forward(self, batch: dict[str, Any]) -> Tensor:
        outputs = self.net(batch["image"], table=batch["table"])
        self.last_confidence = outputs["confidence"]  # a tensor with a history
        return outputs["logits"] * self.temperature

    def training_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch), batch["label"], weight=self.weights)
        self.log("loss", loss)
        return {"loss": loss}

    def on_validation_epoch_start(self) -> None:
        self.seen = []

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.trainer.sanity_checking:
            return
        logits = self(batch)
        self.seen.append(logits)
        self.val_f1(logits, batch["label"])
        self.log("val_f1", self.val_f1, prog_bar=True)
        self.log("val_loss", F.cross_entropy(logits, batch["label"]))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.test_f1(self(batch), batch["label"])
        self.log("test_f1", self.test_f1)

    def configure_optimizers(self) -> dict[str, Any]:
        groups = [
            {"params": self.net.parameters(), "weight_decay": 1e-2},
            {"params": [self.temperature], "lr": 1e-4},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "epoch"},
        }


class LitItself(LightningModule):
    """Layers of its own, as in the first tutorials; mean absolute error, without a test step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 1)
        self.error = MeanAbsoluteError()

    def forward(self, table: Tensor) -> Tensor:
        return self.second(self.first(table).relu()).squeeze(1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch["table"]), batch["label"].float())

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.error.update(self(batch["table"]), batch["label"].float())
        self.log("val_mae", self.error)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


HERE = "tests.contracts.own_code"
WORDS = [
    "task=lightning",
    f"task.module={{_target_:{HERE}.LitTwoTower}}",
    f"data={{_target_:{HERE}.PicturesData}}",
    "objectives.quality=val_f1",
]
"""What a command line says to prune the two towers."""
