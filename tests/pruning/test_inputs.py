"""What a network is called with: where the samples are."""

from __future__ import annotations

import torch

from lightning_modules.pruning.inputs import Inputs


def test_a_batch_is_the_first_dimension_of_all_tensors() -> None:
    inputs = Inputs((torch.zeros(5, 3),), {"mask": torch.zeros(5, 2), "scale": 2.0})
    assert inputs.batch == 5
    assert [tuple(x.shape) for x in inputs.first().tensors()] == [(1, 3), (1, 2)]


def test_a_list_of_two_inputs_keeps_its_batch() -> None:
    inputs = Inputs(([torch.zeros(5, 10), torch.zeros(5, 4)],))
    assert inputs.batch == 5
    assert [tuple(x.shape) for x in inputs.first().tensors()] == [(1, 10), (1, 4)]


def test_images_in_a_list_are_not_cut_along_their_channels() -> None:
    for sides in ((15, 17, 12), (16, 16, 16)):
        images = [torch.zeros(3, side, side) for side in sides]
        inputs = Inputs((images,))
        assert inputs.batch is None
        assert [x.shape for x in inputs.first().tensors()] == [x.shape for x in images]
        assert [x.shape for x in inputs.repeated(2).tensors()] == [x.shape for x in images]


def test_sequences_of_different_lengths_have_no_common_batch() -> None:
    inputs = Inputs(([torch.zeros(7, 2), torch.zeros(4, 2)],))
    assert inputs.batch is None
    assert [tuple(x.shape) for x in inputs.first().tensors()] == [(7, 2), (4, 2)]
