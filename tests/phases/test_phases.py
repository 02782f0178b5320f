"""Training, recalibration, distillation and latency on a small network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.data import digits
from lightning_modules.models import SmallResNet
from lightning_modules.phases.distillation import Distillation, dense_outputs, teacher
from lightning_modules.phases.fit import DivergedError, Optimization, evaluate, fit
from lightning_modules.phases.recalibration import recalibrate
from lightning_modules.pruning.inputs import Inputs
from lightning_modules.recipe import Recipe
from lightning_modules.tasks import Classification
from lightning_modules.tasks.divergence import softened_kl

CPU = torch.device("cpu")
SGD = Optimization(Recipe("torch.optim.SGD", {"lr": 0.1, "momentum": 0.9}))


def trained(rounds: int, seed: int = 0) -> SmallResNet:
    torch.manual_seed(seed)
    model = SmallResNet(10, width=8)
    fit(
        Classification(model, 10),
        digits().train_batches(seed),
        SGD,
        rounds=rounds,
        round_steps=10,
        device=CPU,
    )
    return model


def test_training_learns_and_ends_each_unit_at_a_rung() -> None:
    torch.manual_seed(0)
    data, model = digits(), SmallResNet(10, width=8)
    seen: list[tuple[int, float]] = []

    def on_round(unit: int, metrics: dict[str, float]) -> bool:
        seen.append((unit, metrics["loss"]))
        return True

    task = Classification(model.eval(), 10)
    rounds = fit(
        task,
        data.train_batches(0),
        SGD,
        rounds=4,
        round_steps=12,
        device=CPU,
        val=data.val_dataloader(),
        on_round=on_round,
    )
    assert rounds == 4
    assert [unit for unit, _ in seen] == [1, 2, 3, 4]
    assert seen[-1][1] < 0.5 < seen[0][1] + 0.5
    assert evaluate(task, data.test_dataloader(), CPU)["accuracy"] > 0.85


def test_a_stopped_fit_ends_at_once() -> None:
    data, model = digits(), SmallResNet(10, width=8)
    rounds = fit(
        Classification(model, 10),
        data.train_batches(0),
        SGD,
        rounds=50,
        round_steps=3,
        device=CPU,
        val=data.val_dataloader(),
        on_round=lambda unit, metrics: unit < 2,
    )
    assert rounds == 2


def test_training_is_reproducible() -> None:
    first, second = trained(1), trained(1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_divergence_is_an_error() -> None:
    wild = Optimization(Recipe("torch.optim.SGD", {"lr": 1e9}))
    with pytest.raises(DivergedError, match="the training loss became"):
        fit(
            Classification(SmallResNet(10, width=8), 10),
            digits().train_batches(0),
            wild,
            rounds=1,
            round_steps=8,
            device=CPU,
        )


def test_an_evaluated_model_can_be_trained_again() -> None:
    model = SmallResNet(10, width=8)
    task = Classification(model, 10)
    evaluate(task, digits().val_dataloader(), CPU)
    assert fit(task, digits().train_batches(0), SGD, rounds=1, round_steps=2, device=CPU) == 1


def test_recalibration_gives_the_plain_average_and_keeps_modes() -> None:
    model = SmallResNet(10, width=8).eval()
    batches = list(digits().train_batches(0))[:3]
    recalibrate(model, [Inputs((batch[0],)) for batch in batches], 3, CPU)
    with torch.no_grad():
        means = torch.stack([model.conv1(batch[0]).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(model.bn1.running_mean, means, rtol=1e-4, atol=1e-6)
    assert model.bn1.momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_cached_outputs_are_those_of_the_dense_model() -> None:
    data, model = digits(), trained(1).eval()
    task = Classification(model, 10)
    cached = dense_outputs(task, data.ordered_batches(), data.sample_index, CPU)
    assert cached is not None
    batch = next(iter(data.train_batches(3)))
    with torch.no_grad():
        kept, inputs = teacher(model, cached, data.sample_index), Inputs((batch[0],))
        torch.testing.assert_close(kept(batch, inputs), model(batch[0]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(teacher(model, None)(batch, inputs), model(batch[0]))
    assert all(
        parameter.requires_grad for parameter in model.parameters()
    )  # plans are cut from it and trained
    assert dense_outputs(task, [batch], lambda batch: None, CPU) is None


def test_distillation_mixes_loss_and_divergence() -> None:
    logits, wanted = torch.randn(4, 3), torch.randn(4, 3)
    loss = torch.tensor(2.0)
    taught = Distillation(lambda *_: wanted, softened_kl, temperature=2.0, weight=0.25)
    mixed = taught(loss, logits, None, Inputs())
    p, q = F.softmax(wanted / 2, 1), F.softmax(logits / 2, 1)
    expected = 0.75 * 2.0 + 0.25 * 4.0 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(mixed, expected)
    same = Distillation(lambda *_: logits, softened_kl, weight=1.0)(loss, logits, None, Inputs())
    assert abs(float(same)) < 1e-6
