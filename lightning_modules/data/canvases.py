"""Canvases with several of scikit-learn's digits on them: what stands where is known.

Segmentation gets the class of each pixel, detection the box and the class of each digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from lightning_modules.data.arrays import DIGITS_TEST, DIGITS_VAL
from lightning_modules.data.in_memory import InMemory, Split
from lightning_modules.errors import ConfigError

BACKGROUND = 0
"""The class of pixels without a digit; digit d is class d + 1, as in torchvision's detectors."""
CLASSES = 11
"""Background and ten digits."""
VAL_SHARE = 0.4
"""Canvases of the validation data, as a share of the training data's."""
TEST_PART = 0.6
"""Canvases of the test data, as a share of the training data's."""
MOST_DIGITS = 4
"""Most digits on a canvas; the least is 1."""
LEAST_SIDE, MOST_SIDE = 0.25, 0.4
"""Sides of a digit, as shares of the canvas's."""
INK = 0.3
"""Grey value, of at most 1, from which a pixel belongs to the digit."""
NOISE = 0.1
"""Standard deviation of the noise on every pixel."""
TRIES = 20
"""Places that are drawn for a digit that must not touch another one; then it is left out."""
LEAST_SIZE = 16
"""Smallest side of a canvas, pixels: digits are then four pixels and more."""


class Canvas(NamedTuple):
    """An image (1, size, size), the class of each pixel (size, size), and what stands on it.

    Boxes (n, 4) are x1, y1, x2, y2 in pixels, labels (n,) are classes from 1 on.
    """

    image: Tensor
    mask: Tensor
    boxes: Tensor
    labels: Tensor


class ObjectLists:
    """The boxes and labels of each image; one index of several images gives a list of dicts."""

    def __init__(self, targets: Sequence[dict[str, Tensor]]) -> None:
        self.targets = tuple(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor) -> list[dict[str, Tensor]]:
        return [self.targets[place] for place in index.tolist()]


class Canvases(InMemory):
    """Batches `[images, targets, index]`; targets are masks (N, size, size), or `ObjectLists`."""

    num_classes = CLASSES


def canvases(
    objects: bool = False,
    size: int = 32,
    channels: int = 1,
    images: int = 600,
    batch_size: int = 16,
    seed: int = 0,
) -> Canvases:
    """Canvases of `size` x `size` pixels with one to four digits; nothing is downloaded.

    Targets are masks of classes, or with `objects` a list of dicts: boxes (n, 4) as x1, y1, x2, y2
    in pixels, and labels (n,). There are `images` training canvases. Training, validation and test
    data are made of different digits. `seed` makes the split and the canvases.
    Errors: ConfigError for canvases that are too small or too few.
    """
    if size < LEAST_SIZE:
        raise ConfigError(f"data.size must be at least {LEAST_SIZE} pixels; got {size}")
    if images < batch_size:
        raise ConfigError(
            f"data.images must be at least a batch of {batch_size}; got {images}: more images, or "
            "a smaller data.batch_size"
        )
    read = partial(_splits, objects, size, channels, images, seed)
    return Canvases(read, batch_size=batch_size, val_fraction=None, seed=seed)


def _splits(
    objects: bool, size: int, channels: int, images: int, seed: int
) -> tuple[Split, Split, Split]:
    """Training, validation and test data."""
    bunch = load_digits()
    rest, test = train_test_split(
        np.arange(len(bunch.target)),
        test_size=DIGITS_TEST,
        random_state=seed,
        stratify=bunch.target,
    )
    train, val = train_test_split(
        rest, test_size=DIGITS_VAL, random_state=seed, stratify=bunch.target[rest]
    )
    splits = []
    for number, (digits, share) in enumerate([(train, 1.0), (val, VAL_SHARE), (test, TEST_PART)]):
        painter = Painter(bunch.images[digits], bunch.target[digits], size, seed + number)
        painted = [painter.canvas() for _ in range(round(share * images))]
        inputs = torch.stack([canvas.image for canvas in painted]).repeat(1, channels, 1, 1)
        splits.append((inputs, _objects(painted) if objects else _masks(painted)))
    return splits[0], splits[1], splits[2]


def _masks(painted: Sequence[Canvas]) -> Tensor:
    return torch.stack([canvas.mask for canvas in painted])


def _objects(painted: Sequence[Canvas]) -> ObjectLists:
    return ObjectLists([{"boxes": canvas.boxes, "labels": canvas.labels} for canvas in painted])


class Painter:
    """Paints canvases with digits drawn from `grey` (n, 8, 8), whose values are 0 to 16."""

    def __init__(self, grey: np.ndarray, digits: np.ndarray, size: int, seed: int) -> None:
        self.grey = torch.from_numpy(grey).float() / 16.0
        self.digits = digits
        self.size = size
        self.random = np.random.default_rng(seed)

    def canvas(self) -> Canvas:
        image = torch.zeros(self.size, self.size)
        mask = torch.full((self.size, self.size), BACKGROUND)
        boxes: list[list[int]] = []
        labels: list[int] = []
        for _ in range(self.random.integers(1, MOST_DIGITS + 1)):
            chosen = int(self.random.integers(len(self.digits)))
            ink = self._enlarged(self.grey[chosen])
            place = self._free_place(len(ink), boxes)
            if place is None:
                continue
            label = int(self.digits[chosen]) + 1
            window = (slice(place[1], place[1] + len(ink)), slice(place[0], place[0] + len(ink)))
            image[window] = torch.maximum(image[window], ink)
            mask[window][ink >= INK] = label
            boxes.append(_box_of(ink >= INK, place))
            labels.append(label)
        noise = self.random.normal(0.0, NOISE, image.shape)
        noisy = image + torch.from_numpy(noise).float()
        return Canvas(noisy.unsqueeze(0), mask, torch.tensor(boxes).float(), torch.tensor(labels))

    def _enlarged(self, digit: Tensor) -> Tensor:
        side = self.random.integers(
            round(LEAST_SIDE * self.size), round(MOST_SIDE * self.size), endpoint=True
        )
        shape = (int(side), int(side))
        return F.interpolate(digit[None, None], shape, mode="bilinear", align_corners=False)[0, 0]

    def _free_place(self, side: int, boxes: Sequence[Sequence[int]]) -> tuple[int, int] | None:
        """The left upper corner (x, y) of a window that touches no box; None if none was found."""
        for _ in range(TRIES):
            x, y = (int(value) for value in self.random.integers(0, self.size - side + 1, 2))
            if not any(_overlap((x, y, x + side, y + side), box) for box in boxes):
                return x, y
        return None


def _overlap(one: Sequence[int], other: Sequence[int]) -> bool:
    beside = one[2] <= other[0] or other[2] <= one[0]
    above = one[3] <= other[1] or other[3] <= one[1]
    return not (beside or above)


def _box_of(ink: Tensor, place: tuple[int, int]) -> list[int]:
    """The smallest box x1, y1, x2, y2 around the ink of a window at (x, y)."""
    rows, columns = ink.any(1).nonzero(), ink.any(0).nonzero()
    left, top = place
    return [
        left + int(columns[0]),
        top + int(rows[0]),
        left + int(columns[-1]) + 1,
        top + int(rows[-1]) + 1,
    ]
