"""What every task gives the search, whatever its batches, outputs and metrics are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

from lightning_modules.errors import ConfigError
from lightning_modules.phases.distillation import Distillation, dense_outputs, distilled, teacher
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.inputs import Inputs, run
from lightning_modules.recipe import Recipe
from lightning_modules.tasks import Classification, Regression, Tabular
from lightning_modules.tasks.contract import (
    build_task,
    check_outputs,
    divergence_of,
    inputs_from,
    inputs_of,
    loss_in,
    step_loss,
)
from lightning_modules.tasks.metrics import directions_of, scale_of
from lightning_modules.tasks.outside import outside_trainer
from tests.contracts.task_cases import CASES, NAMES, batches, parts_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_what_the_network_is_called_with_and_it_does_not_run(name: str) -> None:
    network, data, task = parts_of(name)
    batch, calls = next(batches(task, data)), []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    inputs = inputs_of(task, batch)
    assert calls == []
    handle.remove()
    outputs = run(network, inputs)
    assert all(len(leaf) == inputs.batch for leaf in pytree.tree_leaves(outputs))
    assert inputs.first().batch == 1
    check_outputs(task, next(batches(task, data)))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_come_back_from_their_description_in_shape_and_type(name: str) -> None:
    network, data, task = parts_of(name)
    inputs = inputs_of(task, next(batches(task, data))).first()
    again = Inputs.from_json(inputs.to_json())
    assert [(t.shape, t.dtype) for t in again.tensors()] == [
        (t.shape, t.dtype) for t in inputs.tensors()
    ]
    assert set(again.kwargs) == set(inputs.kwargs)
    shapes = [leaf.shape for leaf in pytree.tree_leaves(run(network, inputs))]
    assert [leaf.shape for leaf in pytree.tree_leaves(run(network, again))] == shapes


@pytest.mark.parametrize("name", NAMES)
def test_the_structure_is_found_at_the_captured_inputs(name: str) -> None:
    network, data, task = parts_of(name)
    structure = discover(network, inputs_of(task, next(batches(task, data))))
    assert structure.groups
    assert structure.source == "export"


@pytest.mark.parametrize("name", NAMES)
def test_a_divergence_is_zero_for_equal_outputs_and_above_for_others(name: str) -> None:
    network, data, task = parts_of(name)
    divergence = divergence_of(task)
    assert divergence is not None
    outputs = run(network, inputs_of(task, next(batches(task, data))))
    other = pytree.tree_map(lambda x: x + torch.randn_like(x), outputs)
    for temperature in (1.0, 3.0):
        assert float(divergence(outputs, outputs, temperature)) == pytest.approx(0.0, abs=1e-6)
        assert float(divergence(other, outputs, temperature)) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_distillation_wraps_the_loss_and_leaves_the_task_as_it_was(name: str) -> None:
    network, data, task = parts_of(name)
    divergence, batch = divergence_of(task), next(batches(task, data))
    assert divergence is not None
    dense, _, _ = parts_of(name)
    apart = divergence(
        run(network, inputs_of(task, batch)), run(dense, inputs_of(task, batch)), 3.0
    )
    before = set(vars(task))
    network.eval()
    plain = step_loss(task, batch)
    with distilled(task, Distillation(teacher(dense, None), divergence, weight=0.25)):
        mixed = loss_in(task.training_step(batch, 0), task)
    assert set(vars(task)) == before
    torch.testing.assert_close(mixed, 0.75 * plain + 0.25 * apart, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step_loss(task, batch), plain)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_not_kept_of_data_that_does_not_name_its_samples(name: str) -> None:
    _, data, task = parts_of(name)
    assert dense_outputs(task, data.ordered_batches(), lambda batch: None, CPU) is None


@pytest.mark.parametrize("name", CASES)
def test_kept_outputs_are_those_of_the_dense_model_sample_by_sample(name: str) -> None:
    network, data, task = parts_of(name)
    shown = list(inputs_from(task, data.ordered_batches(), CPU))
    sizes = [inputs.batch for inputs in shown]
    places = list(
        torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(1)).split(sizes)
    )
    waiting = iter(places)
    kept = dense_outputs(task, data.ordered_batches(), lambda batch: next(waiting), CPU)
    for inputs, place in zip(shown, places, strict=True):
        looked_up = teacher(network, kept, lambda _, place=place: place)(None, Inputs())
        expected = run(network, inputs)
        pairs = zip(pytree.tree_leaves(looked_up), pytree.tree_leaves(expected), strict=True)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def test_a_unit_of_a_metric_is_what_the_task_says_or_the_dense_value() -> None:
    assert scale_of(Recipe("lightning_modules.tasks.Classification"), "accuracy", 0.9) == 1.0
    assert scale_of(Recipe("lightning_modules.tasks.Regression"), "mae", 4.5) == 4.5
    assert scale_of(Recipe("lightning_modules.tasks.Regression"), "mae", 0.0) == 1.0


def test_the_error_of_a_regression_is_in_the_unit_of_its_target() -> None:
    network = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(network.weight)
    torch.nn.init.zeros_(network.bias)
    task = Regression(network, SimpleNamespace(target_deviation=10.0))
    batch = (torch.zeros(2, 1), torch.tensor([3.0, -1.0]))
    with outside_trainer(task) as logged:
        task.validation_step(batch, 0)
    assert logged["mae"].compute().item() == pytest.approx(20.0)
    assert logged["rmse"].compute().item() == pytest.approx(10.0 * 5.0**0.5)
    assert step_loss(task, batch).item() == pytest.approx((2.5 + 0.5) / 2)


@pytest.mark.parametrize("scale", [1.0, -1.0, 30.0])
def test_the_area_under_the_roc_curve_is_that_of_the_pairs_in_order(scale: float) -> None:
    """Three of the four pairs of a positive and a negative sample are in order.

    Logits between 0 and 1 are no probabilities, and confident ones are no ties.
    """
    task = Tabular(torch.nn.Identity(), 2)
    logits = scale * torch.tensor([[0.0, 0.1], [0.0, 0.4], [0.0, 0.35], [0.0, 0.8]])
    task.metrics.update(logits[:2], torch.tensor([0, 0]))
    task.metrics.update(logits[2:], torch.tensor([1, 1]))
    expected = 0.75 if scale > 0 else 0.25
    assert task.metrics.compute()["roc_auc"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "outputs", "message"),
    [
        ("regression", torch.zeros(4, 2), r"\(batch,\) or \(batch, 1\).*it is \(batch, 2\)"),
        ("regression", {}, r"it is a dict"),
        ("multitask", torch.zeros(4, 10), r"'parity': \(2,\)\}; they are a Tensor"),
        ("multitask", {"digit": torch.zeros(4, 9)}, r"they are \{'digit': \(9,\)\}"),
        ("tabular", torch.zeros(4, 3), r"must be \(batch, 2\).*see the model's .* outputs"),
    ],
)
def test_outputs_of_another_form_are_refused(name: str, outputs: object, message: str) -> None:
    _, _, task = parts_of(name)
    with pytest.raises(ConfigError, match=message):
        task.check(outputs, None)


class Silent(torch.nn.Module):
    """No task: it names no metric."""


def test_a_task_that_names_no_metric_is_refused_with_an_example() -> None:
    with pytest.raises(
        ConfigError, match=r"directions = \{'accuracy': 'maximize', 'loss': 'minimize'\}"
    ):
        directions_of(Recipe(f"{__name__}.Silent"))


def test_a_network_that_does_not_fit_its_data_is_told_with_the_shapes(tmp_path: Path) -> None:
    network, _, task = parts_of("regression")
    with pytest.raises(
        ConfigError, match=r"take the data's inputs \(4, 3\).*such as model.features"
    ):
        check_outputs(task, (torch.zeros(4, 3), torch.zeros(4)))
    with pytest.raises(
        ConfigError, match=r"Regression.validation_step must take the model's outputs"
    ):
        check_outputs(task, (torch.zeros(4, 10), torch.zeros(5)))
    assert network is task.model


class Auxiliary(torch.nn.Module):
    """Two outputs in training, one otherwise, as GoogLeNet has them."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        self.named = named

    def forward(self, x: torch.Tensor) -> object:
        logits = self.fc(x)
        if self.named:
            return {"features": x, "logits": logits}
        return (logits, logits) if self.training else logits


@pytest.mark.parametrize("named", [False, True])
def test_classification_finds_the_logits_among_several_outputs(named: bool) -> None:
    network = Auxiliary(named)
    task = Classification(network, 3)
    batch = (torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    check_outputs(task, batch)
    network.train()
    assert step_loss(task, batch).requires_grad
    divergence = divergence_of(task)
    assert divergence is not None
    dense = run(network, Inputs((batch[0],)))
    outputs = network.train()(batch[0])
    assert divergence(outputs, dense, 1.0).item() == pytest.approx(0.0, abs=1e-6)


def test_a_number_of_classes_that_the_data_lacks_may_be_given_to_the_task() -> None:
    network = torch.nn.Linear(4, 3)
    asks = "lightning_modules.tasks.Classification"
    with pytest.raises(ConfigError, match=r"asks for the number of classes.*task.num_classes=10"):
        build_task(Recipe(asks), network, object())
    task = build_task(Recipe(asks, {"num_classes": 3}), network, object())
    assert task.num_classes == 3
