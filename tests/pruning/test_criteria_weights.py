"""Known scores of the criteria that look at weights alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError, PlanError
from lightning_modules.pruning.criteria import (
    BnScale,
    Calibration,
    Cosine,
    Criterion,
    GeometricMedian,
    Lamp,
    Magnitude,
    Random,
)
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.thresholds import Scores

NOTHING = Calibration([], lambda model, batch: torch.zeros(()))


def hidden(rows: list[list[float]]) -> nn.Sequential:
    """One hidden unit per row of weights."""
    model = nn.Sequential(
        nn.Linear(len(rows[0]), len(rows), bias=False), nn.ReLU(), nn.Linear(len(rows), 2)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(rows))
    return model


def score(criterion: Criterion, model: nn.Sequential) -> Scores:
    structure = discover(model, (torch.zeros(1, model[0].in_features),))
    return criterion(model, structure, NOTHING)


class Sum(nn.Module):
    """Two layers of three units whose outputs are added."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.left.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
            self.right.weight.copy_(torch.tensor([[0.0, 5.0], [4.0, 0.0], [0.0, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x) + self.right(x)))


def test_magnitudes_are_norms() -> None:
    model = hidden([[3.0, -4.0], [1.0, 0.0], [-2.0, 2.0]])
    np.testing.assert_allclose(score(Magnitude(1.0), model), [7.0, 1.0, 4.0])
    np.testing.assert_allclose(score(Magnitude(2.0), model), [5.0, 1.0, 8.0**0.5])
    np.testing.assert_allclose(score(Magnitude(float("inf")), model), [4.0, 1.0, 2.0])
    found = Magnitude(1.0).weights(model, ["0.weight"], NOTHING)["0.weight"]
    assert torch.equal(found, torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 2.0]]))


def test_coupled_layers_count_by_their_mean() -> None:
    model = Sum()
    structure = discover(model, (torch.zeros(1, 2),))
    np.testing.assert_allclose(Magnitude(1.0)(model, structure, NOTHING), [3.0, 3.0, 2.0])


def test_the_gates_of_a_recurrent_unit_add_up() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(2, 3, batch_first=True, bias=False), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    model = Net()
    structure = discover(model, (torch.zeros(1, 4, 2),))
    with torch.no_grad():
        # rows are gate by gate: unit 0 has 1 + 4 + 7 + 10, and half of it beside its recurrent
        # weights
        model.rnn.weight_ih_l0.copy_(torch.arange(1.0, 13.0)[:, None].expand(12, 2) / 2)
        model.rnn.weight_hh_l0.zero_()
    np.testing.assert_allclose(Magnitude(1.0)(model, structure, NOTHING), [11.0, 13.0, 15.0])


def test_lamp_is_the_share_of_what_is_at_least_as_large() -> None:
    model = hidden([[3.0, -4.0], [1.0, 0.0], [-2.0, 2.0]])
    np.testing.assert_allclose(score(Lamp(), model), [1.0, 1.0 / 34.0, 8.0 / 33.0])
    found = Lamp().weights(hidden([[1.0, -3.0], [2.0, 0.0]]), ["0.weight"], NOTHING)["0.weight"]
    np.testing.assert_allclose(found, [[1.0 / 14.0, 1.0], [4.0 / 13.0, 0.0]], rtol=1e-6)


def test_lamp_gives_equals_the_same_and_nothing_to_zeros() -> None:
    found = Lamp().weights(hidden([[2.0, -2.0], [2.0, 1.0]]), ["0.weight"], NOTHING)["0.weight"]
    np.testing.assert_allclose(found, [[1.0 / 3.0, 1.0 / 3.0], [1.0 / 3.0, 1.0 / 13.0]], rtol=1e-6)
    assert not Lamp().weights(hidden([[0.0, 0.0]]), ["0.weight"], NOTHING)["0.weight"].any()


def test_lamp_keeps_the_order_of_magnitude_within_a_group() -> None:
    model = hidden(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).tolist())
    assert (np.argsort(score(Lamp(), model)) == np.argsort(score(Magnitude(2.0), model))).all()


def test_the_scale_of_the_norm_is_the_score() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0]))
    structure = discover(model, (torch.zeros(1, 1, 4, 4),))
    np.testing.assert_allclose(BnScale()(model, structure, NOTHING), [0.5, 2.0, 0.0])


def test_a_norm_group_has_the_mean_scale_of_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 3.0, 5.0]))
    structure = discover(model, (torch.zeros(1, 1, 4, 4),))
    np.testing.assert_allclose(BnScale()(model, structure, NOTHING), [1.5, 4.0])


def test_without_a_norm_the_scale_is_the_magnitude_in_multiples_of_its_mean() -> None:
    np.testing.assert_allclose(score(BnScale(), hidden([[3.0], [-1.0], [2.0]])), [1.5, 0.5, 1.0])


def test_geometric_median_sums_distances_and_knows_signs() -> None:
    model = hidden([[1.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
    np.testing.assert_allclose(score(GeometricMedian(), model), [4.0, 6.0, 6.0])
    mirrored = score(GeometricMedian(), hidden([[1.0, 1.0], [-1.0, -1.0], [1.0, 0.0]]))
    assert mirrored[0] < mirrored[1]  # squared or absolute weights would make them equal


def test_what_a_pruned_unit_was_does_not_count_for_the_median() -> None:
    model = hidden([[1.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
    structure = discover(model, (torch.zeros(1, 2),))
    keep = np.array([True, False, True])
    found = GeometricMedian()(remove(model, structure, keep), structure.restrict(keep), NOTHING)
    np.testing.assert_allclose(found, [2.0, 0.0, 2.0])


def test_of_units_with_the_same_direction_the_strongest_stays() -> None:
    found = score(Cosine(), hidden([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [0.0, 0.0, 1.0, 1.0, 0.0], atol=1e-12)
    found = score(Cosine(), hidden([[1.0, 0.0], [2.0, 2.0]]))
    np.testing.assert_allclose(found, [1.0 - 0.5**0.5, 1.0])


def test_of_exact_duplicates_one_goes_and_one_stays() -> None:
    np.testing.assert_allclose(
        score(Cosine(), hidden([[1.0, 2.0], [1.0, 2.0]])), [1.0, 0.0], atol=1e-12
    )


def test_a_stand_in_must_be_one_in_all_coupled_layers() -> None:
    model = Sum()
    structure = discover(model, (torch.zeros(1, 2),))
    # the left layer has units 0 and 1 alike, the right one 0 and 2: nobody is replaced altogether
    np.testing.assert_allclose(Cosine()(model, structure, NOTHING), [1.0, 0.5, 0.5])


def test_random_scores_depend_on_seed_name_and_place_alone() -> None:
    model = hidden([[1.0, 2.0], [3.0, 4.0]])
    structure = discover(model, (torch.zeros(1, 2),))
    other = Calibration([], NOTHING.loss, seed=1)
    assert (Random()(model, structure, NOTHING) != Random()(model, structure, other)).all()
    alone = Random().weights(model, ["2.weight"], NOTHING)["2.weight"]
    both = Random().weights(model, ["0.weight", "2.weight"], NOTHING)
    assert torch.equal(alone, both["2.weight"])
    assert not torch.equal(both["0.weight"], both["2.weight"])
    assert ((alone >= 0.0) & (alone < 1.0)).all()


def test_names_that_are_no_parameters_are_refused() -> None:
    with pytest.raises(PlanError, match=r"it has no \['1.weight'\]"):
        Magnitude().weights(hidden([[1.0]]), ["0.weight", "1.weight"], NOTHING)


def test_a_norm_of_order_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="p must be above 0"):
        Magnitude(0.0)
