"""Image sets that are read at once: scikit-learn's digits, and Fashion-MNIST from its idx files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from lightning_modules.data.in_memory import InMemory, Split
from lightning_modules.errors import DataError

DIGITS_TEST = 0.3
"""Share of all digits that is test data: 540 images, so that 0.2 % of accuracy is one image."""
DIGITS_VAL = 0.25
"""Share of the other digits that is validation data: 315 images."""


def digits(
    size: int = 8,
    channels: int = 1,
    batch_size: int = 64,
    seed: int = 0,
) -> InMemory:
    """scikit-learn's 1,797 hand-written digits of 8 x 8 pixels; they are part of that package.

    Images are resized to `size` x `size` pixels, with the grey value in each of `channels`.
    `seed` makes the split.
    """

    def read() -> tuple[Split, Split]:
        bunch = load_digits()
        grey = torch.from_numpy(bunch.images).float() / 16.0
        images = _shaped(grey, size, channels)
        targets = torch.from_numpy(bunch.target).long()
        train, test = train_test_split(
            np.arange(len(targets)), test_size=DIGITS_TEST, random_state=seed, stratify=targets
        )
        return (images[train], targets[train]), (images[test], targets[test])

    return InMemory(read, batch_size=batch_size, val_fraction=DIGITS_VAL, seed=seed)


def fashion_mnist(
    folder: str = "/usr/share/datasets/fashion-mnist",
    size: int = 28,
    channels: int = 1,
    batch_size: int = 64,
    val_fraction: float = 0.1,
    train_images: int | None = None,
    seed: int = 0,
) -> InMemory:
    """Fashion-MNIST (Xiao et al. 2017) from its four idx.gz files in `folder`.

    Images are resized to `size` x `size` pixels, with the grey value in each of `channels`.
    `train_images` takes the first that many of the 60,000 training images; None takes all.
    `val_fraction` is of the training images. `seed` makes the split.
    """

    def read() -> tuple[Split, Split]:
        images, targets = _idx_split(Path(folder), "train", size, channels)
        train = (images[:train_images], targets[:train_images])
        return train, _idx_split(Path(folder), "t10k", size, channels)

    return InMemory(read, batch_size=batch_size, val_fraction=val_fraction, seed=seed)


def _idx_split(folder: Path, part: str, size: int, channels: int) -> Split:
    pixels = _idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz")
    images = torch.from_numpy(pixels).float() / 255.0
    return _shaped(images, size, channels), torch.from_numpy(labels).long()


def _idx(path: Path) -> np.ndarray:
    """The array in a gzipped idx file of unsigned bytes.

    The file has 4 bytes of magic, whose last is the rank, a big-endian int32 per dimension, and the
    data. Errors: DataError if the file does not exist.
    """
    if not path.exists():
        raise DataError(
            f"data.folder must hold {path.name}; {path} does not exist "
            "(Debian: dataset-fashion-mnist)"
        )
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, offset=4)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    return values.reshape(shape).copy()


def _shaped(images: Tensor, size: int, channels: int) -> Tensor:
    """Grey images (n, h, w) as (n, channels, size, size); shrinking averages, growing is
    bilinear.
    """
    images = images.unsqueeze(1)
    target = (size, size)
    if size < images.shape[-1]:
        images = F.interpolate(images, target, mode="bilinear", antialias=True)
    elif size > images.shape[-1]:
        images = F.interpolate(images, target, mode="bilinear", align_corners=False)
    return images.repeat(1, channels, 1, 1)
