"""Training of compiled networks."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules.data import digits
from lightning_modules.models import SmallResNet
from lightning_modules.phases.compiled import compile_fault
from lightning_modules.phases.fit import Optimization, fit
from lightning_modules.phases.trainer_options import PLAIN, TrainerOptions
from lightning_modules.recipe import Recipe
from lightning_modules.tasks import Classification

CPU = torch.device("cpu")
SGD = Optimization(Recipe("torch.optim.SGD", {"lr": 0.1}))


def trained(options: TrainerOptions) -> nn.Module:
    torch.manual_seed(0)
    model = SmallResNet(width=4, num_classes=10)
    batches = digits().train_batches(0)
    fit(
        Classification(model, 10),
        batches,
        SGD,
        rounds=1,
        round_steps=3,
        device=CPU,
        options=options,
    )
    return model


@pytest.mark.slow
def test_a_compiled_network_learns_the_same() -> None:
    batch = next(iter(digits().train_batches(0)))
    fault = compile_fault(Classification(SmallResNet(width=4, num_classes=10), 10), batch)
    if fault:
        pytest.skip(f"nothing compiles on this machine: {fault}")
    model = trained(TrainerOptions(compile=True))
    assert model._compiled_call_impl is None
    for name, value in trained(PLAIN).state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-4), name


def test_what_does_not_compile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, *given: Any, **more: Any) -> None:
        raise RuntimeError("there is no compiler\nand more lines")

    monkeypatch.setattr(nn.Module, "compile", refuse)
    batch = next(iter(digits().train_batches(0)))
    fault = compile_fault(Classification(SmallResNet(width=4, num_classes=10), 10), batch)
    assert fault == "RuntimeError: there is no compiler"
