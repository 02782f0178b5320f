"""Four small problems as their users would write them: what a batch, an output and a metric are
differs in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanMetric
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy

SAMPLES, BATCH = {"train": 160, "val": 64, "test": 64}, 32


class Loader:
    """Batches with a length; a plain list would mean several loaders to Lightning."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class MadeData(LightningDataModule):
    """Batches of whatever `samples` makes for (part, index); nothing beyond what the phases ask
    for.
    """

    def samples(self, index: Tensor, generator: torch.Generator) -> Any:
        raise NotImplementedError  # each case has its own

    def _batches(self, part: str) -> list[Any]:
        offset = {"train": 0, "val": 1, "test": 2}[part]
        return [
            self.samples(index, torch.Generator().manual_seed(1000 * offset + int(index[0])))
            for index in torch.arange(SAMPLES[part]).split(BATCH)
        ]

    def train_batches(self, seed: int) -> Loader:
        batches = self._batches("train")
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
        return Loader([batches[place] for place in order])

    def ordered_batches(self) -> Loader:
        return Loader(self._batches("train"))

    def val_dataloader(self) -> Loader:
        return Loader(self._batches("val"))

    def test_dataloader(self) -> Loader:
        return Loader(self._batches("test"))


class PointData(MadeData):
    """Points in eight dimensions: (inputs, one number each), as a tuple."""

    def samples(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(len(index), 8, generator=generator)
        return x, 40.0 + 10.0 * x[:, 0] - 5.0 * x[:, 1] * x[:, 2]


class RegressionNet(nn.Module):
    """One number per sample, shape (N,)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 40.0 + 10.0 * self.head(self.layers(x)).squeeze(-1)


class Regression(LightningModule):
    """Mean absolute error, to be small, in the target's own units; it logs no loss."""

    directions: ClassVar[dict[str, str]] = {"mae": "minimize"}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.mae = model, MeanAbsoluteError()

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return F.huber_loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.mae.update(self.model(batch[0]), batch[1])
        self.log("mae", self.mae, on_epoch=True)


class TokenData(MadeData):
    """Sentences of twelve tokens, padded: a dict of token ids, attention mask and labels."""

    def samples(self, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        tokens = torch.randint(2, 30, (len(index), 12), generator=generator)
        lengths = torch.randint(4, 13, (len(index),), generator=generator)
        mask = torch.arange(12)[None] < lengths[:, None]
        tokens = torch.where(mask, tokens, 0)
        return {"ids": tokens, "mask": mask, "labels": ((tokens > 20).sum(1) * 3 > lengths).long()}


class TokenNet(nn.Module):
    """An encoder of integer tokens; the mask is a keyword."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, ids: Tensor, *, attention_mask: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x + self.down(F.gelu(self.up(x)))
        weights = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weights).sum(1) / weights.sum(1))


class TokenTask(LightningModule):
    """Cross-entropy; accuracy between 0 and 1; batches are dicts."""

    directions: ClassVar[dict[str, str]] = {"accuracy": "maximize", "loss": "minimize"}
    scale: ClassVar[dict[str, float]] = {"accuracy": 1.0}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.accuracy, self.mean_loss = (
            model,
            MulticlassAccuracy(2, average="micro"),
            MeanMetric(),
        )

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["ids"], attention_mask=batch["mask"])

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self._logits(batch), batch["labels"])}

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        logits = self._logits(batch)
        self.accuracy.update(logits, batch["labels"])
        self.mean_loss.update(F.cross_entropy(logits, batch["labels"]))
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.log("loss", self.mean_loss, on_epoch=True)


class TwoHeadData(MadeData):
    """Points, with a class and whether it is even."""

    def samples(self, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(len(index), 1, 8, 8, generator=generator)
        kind = (x.mean((1, 2, 3)) > 0).long() + 2 * (x[:, 0, :4].mean((1, 2)) > 0).long()
        return {"image": x, "kind": kind, "even": (kind % 2 == 0).float()}


class TwoHeadNet(nn.Module):
    """A shared backbone and a dict of two outputs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.kind, self.even = nn.Linear(2 * width, 4), nn.Linear(2 * width, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.backbone(image)
        return {"kind": self.kind(x), "even": self.even(x).squeeze(1)}


class TwoHeadTask(LightningModule):
    """The sum of two losses, a metric for each head."""

    directions: ClassVar[dict[str, str]] = {"kind": "maximize", "even": "maximize"}
    scale: ClassVar[dict[str, float]] = {"kind": 1.0, "even": 1.0}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.kind, self.even = (
            model,
            MulticlassAccuracy(4, average="micro"),
            BinaryAccuracy(),
        )

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        outputs = self.model(batch["image"])
        even = F.binary_cross_entropy_with_logits(outputs["even"], batch["even"])
        return F.cross_entropy(outputs["kind"], batch["kind"]) + even

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        outputs = self.model(batch["image"])
        self.kind.update(outputs["kind"], batch["kind"])
        self.even.update(outputs["even"], batch["even"])
        self.log("kind", self.kind, on_epoch=True)
        self.log("even", self.even, on_epoch=True)


HERE = "tests.contracts.task_cases"
CASES: dict[str, tuple[str, str, str, str]] = {
    "regression": ("RegressionNet", "PointData", "Regression", "mae"),
    "tokens": ("TokenNet", "TokenData", "TokenTask", "accuracy"),
    "two_heads": ("TwoHeadNet", "TwoHeadData", "TwoHeadTask", "kind"),
}
"""Name -> network, data, task, quality; classification is the project's own."""


def overrides(name: str) -> list[str]:
    """What a command line says to prune this case."""
    if name == "classification":
        return ["model.width=8"]
    network, data, task, quality = CASES[name]
    targets = {"model": network, "data": data, "task": task}
    words = [f"{group}={{_target_:{HERE}.{target}}}" for group, target in targets.items()]
    return [*words, f"objectives.quality={quality}"]


def parts_of(name: str) -> tuple[nn.Module, Any, LightningModule]:
    """(network, data, task around it) of a case."""
    if name == "classification":
        from lightning_modules.data import digits
        from lightning_modules.models import SmallResNet
        from lightning_modules.tasks import Classification

        network: nn.Module = SmallResNet(10, width=8)
        return network, digits(), Classification(network, 10)
    names = CASES[name]
    network = globals()[names[0]]()
    return network, globals()[names[1]](), globals()[names[2]](network)


def batches(data: Any) -> Iterator[Any]:
    return iter(data.val_dataloader())


NAMES = ["classification", *CASES]
