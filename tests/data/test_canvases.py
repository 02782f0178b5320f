"""Canvases: what is painted is what the targets say."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from lightning_modules.data import canvases
from lightning_modules.data.canvases import INK, Painter
from lightning_modules.errors import ConfigError


def painter(seed: int = 0) -> Painter:
    bunch = load_digits()
    return Painter(bunch.images, bunch.target, 48, seed)


def test_a_box_is_the_smallest_one_around_the_pixels_of_its_digit() -> None:
    for canvas in (painter(seed).canvas() for seed in range(20)):
        inside = torch.zeros_like(canvas.mask)
        for (left, top, right, bottom), label in zip(
            canvas.boxes.int().tolist(), canvas.labels.tolist(), strict=True
        ):
            window = canvas.mask[top:bottom, left:right]
            inside[top:bottom, left:right] = 1
            assert set(window.unique().tolist()) == {0, label}
            for edge in (window[0], window[-1], window[:, 0], window[:, -1]):
                assert (edge == label).any()
        assert not (canvas.mask * (1 - inside)).any()
        assert 1 <= len(canvas.labels) <= 4


def test_labelled_pixels_are_bright_and_others_dark() -> None:
    canvas = painter().canvas()
    ink = canvas.image[0][canvas.mask > 0]
    assert ink.mean() > 2 * INK > canvas.image[0][canvas.mask == 0].mean() + INK


def test_both_kinds_of_target_are_of_the_same_images() -> None:
    masks, objects = (canvases(found, images=16) for found in (False, True))
    for data in (masks, objects):
        data.setup()
        assert [len(split[0]) for split in data.splits.values()] == [16, 6, 10]
        assert [len(split[1]) for split in data.splits.values()] == [16, 6, 10]
    assert torch.equal(masks.splits["test"][0], objects.splits["test"][0])
    first = objects.splits["val"][1][torch.tensor([2])][0]
    assert set(first["labels"].tolist()) == set(masks.splits["val"][1][2].unique().tolist()) - {0}


def test_the_seed_makes_the_canvases() -> None:
    first, again, other = (canvases(images=16, seed=seed) for seed in (0, 0, 1))
    for data in (first, again, other):
        data.setup()
    assert torch.equal(first.splits["test"][0], again.splits["test"][0])
    assert not torch.equal(first.splits["test"][0], other.splits["test"][0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"size": 8}, r"data.size must be at least 16 pixels; got 8"),
        ({"images": 3}, r"data.images must be at least a batch of 16; got 3.*data.batch_size"),
        ({"batch_size": 0}, r"data.batch_size must be at least 1; got 0"),
    ],
)
def test_canvases_that_cannot_be_are_refused(words: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        canvases(**words)
