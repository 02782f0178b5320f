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

MEAN = (0.485, 0.456, 0.406)
"""The mean of ImageNet's training images per channel, which torchvision's weights expect."""
DEVIATION = (0.229, 0.224, 0.225)
"""The standard deviation of the same images per channel."""


class ImageFolder(LightningDataModule):
    """Image classification from a folder per class.

    Training images are cropped at random and flipped at random. A stratified `val_fraction` of
    `train/`, chosen by `seed`, is the validation data; `val/` is the test data. `size` is the side
    of the crop in pixels. `resize` is the shorter side in pixels to which images are scaled before
    evaluation's central crop. `workers` is the number of loader processes.
    Errors: DataError if a folder is missing, or if the two folders do not have the same classes.
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
        self.folder = Path(folder)
        self.size = size
        self.resize = resize
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.workers = workers
        self.seed = seed
        self.classes = _common_classes(self.folder)
        self.num_classes = len(self.classes)
        self.parts: dict[str, Subset | datasets.ImageFolder] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        evaluated, augmented = self._transforms()
        train_folder = self.folder / "train"
        moving = datasets.ImageFolder(train_folder, augmented)
        still = datasets.ImageFolder(train_folder, evaluated)
        train, val = train_test_split(
            np.arange(len(still)),
            test_size=self.val_fraction,
            random_state=self.seed,
            stratify=still.targets,
        )
        self.parts = {
            "train": Subset(moving, train.tolist()),
            "ordered": Subset(still, train.tolist()),
            "val": Subset(still, val.tolist()),
            "test": datasets.ImageFolder(self.folder / "val", evaluated),
        }

    def _transforms(self) -> tuple[v2.Compose, v2.Compose]:
        """The transforms of evaluation and of training."""
        finish = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, DEVIATION),
        ]
        evaluated = v2.Compose([v2.Resize(self.resize), v2.CenterCrop(self.size), *finish])
        augmented = v2.Compose(
            [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(), *finish]
        )
        return evaluated, augmented

    def _loader(self, part: str, seed: int | None = None) -> DataLoader:
        """A loader of one part; with a seed it shuffles and drops a last batch that is not full."""
        self.setup()
        shuffled = seed is not None
        return DataLoader(
            self.parts[part],
            self.batch_size,
            shuffle=shuffled,
            num_workers=self.workers,
            drop_last=shuffled and len(self.parts[part]) > self.batch_size,
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


def _common_classes(folder: Path) -> list[str]:
    """The classes of `train/` and `val/`. Errors: DataError if these are missing or differ."""
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise DataError(
                f"data.folder must hold train/<class>/ and val/<class>/; {folder / part} is not a "
                "folder"
            )
    classes = _classes(folder / "train")
    held_out = _classes(folder / "val")
    if classes != held_out:
        odd = sorted(set(classes) ^ set(held_out))
        raise DataError(
            f"train/ and val/ of {folder} must have the same classes; only one has {odd[:5]}"
        )
    return classes


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
