"""Image folders as ImageNet has them: `train/<class>/*.jpg` and `val/<class>/*.jpg`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Subset
from torchvision import datasets
from torchvision.transforms import v2

from lightning_modules.errors import DataError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, per channel: what torchvision's weights expect."""


class ImageFolder(LightningDataModule):
    """Training images are cropped at random and flipped; validation is cut from them by seed; `val/` is test data.

    `size` is the side of the crop in pixels, `resize` the shorter side before the central crop of evaluation.
    Errors: DataError when a folder is missing or both do not have the same classes.
    """

    def __init__(
        self,
        folder: str,
        size: int = 224,
        resize: int = 232,
        batch_size: int = 128,
        val_fraction: float = 0.02,
        workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.folder, self.size, self.resize = Path(folder), size, resize
        self.batch_size, self.val_fraction, self.workers, self.seed = (
            batch_size,
            val_fraction,
            workers,
            seed,
        )
        for part in ("train", "val"):
            if not (self.folder / part).is_dir():
                raise DataError(
                    f"data.folder must hold train/<class>/ and val/<class>/; {self.folder / part} is not a folder"
                )
        self.classes = sorted(
            entry.name for entry in (self.folder / "train").iterdir() if entry.is_dir()
        )
        held_out = sorted(entry.name for entry in (self.folder / "val").iterdir() if entry.is_dir())
        if self.classes != held_out:
            odd = sorted(set(self.classes) ^ set(held_out))
            raise DataError(
                f"train/ and val/ of {self.folder} must have the same classes; only one has {odd[:5]}"
            )
        self.num_classes = len(self.classes)
        self.parts: dict[str, Subset | datasets.ImageFolder] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        finish = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, DEVIATION),
        ]
        still = v2.Compose([v2.Resize(self.resize), v2.CenterCrop(self.size), *finish])
        moving = v2.Compose([v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(), *finish])
        augmented = datasets.ImageFolder(self.folder / "train", moving)
        plain = datasets.ImageFolder(self.folder / "train", still)
        train, val = train_test_split(
            np.arange(len(plain)),
            test_size=self.val_fraction,
            random_state=self.seed,
            stratify=plain.targets,
        )
        self.parts = {
            "train": Subset(augmented, train.tolist()),
            "ordered": Subset(plain, train.tolist()),
            "val": Subset(plain, val.tolist()),
            "test": datasets.ImageFolder(self.folder / "val", still),
        }

    def _loader(self, part: str, seed: int | None = None) -> DataLoader:
        self.setup()
        return DataLoader(
            self.parts[part],
            self.batch_size,
            shuffle=seed is not None,
            num_workers=self.workers,
            drop_last=seed is not None and len(self.parts[part]) > self.batch_size,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
            persistent_workers=self.workers > 0,
        )

    def train_batches(self, seed: int) -> DataLoader:
        return self._loader("train", seed)

    def ordered_batches(self) -> DataLoader:
        return self._loader("ordered")

    def train_dataloader(self) -> DataLoader:
        return self.train_batches(self.seed)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")
