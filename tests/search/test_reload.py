"""A model that cannot be loaded again is refused before anything is trained."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.errors import ConfigError
from lightning_modules.pruning.inputs import Inputs
from orchestrator import load_settings
from orchestrator.search.lab.reload import apart, check_reloads


class Plain(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu())


class Varies(Plain):
    """A number that is drawn anew each time, and stored nowhere."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.scale = float(torch.rand(1)) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale)


class Lazy(Plain):
    """Has no shapes before it has run."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.first = nn.LazyLinear(8)


def check(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("reloaded_models")
    setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "reloaded_models", module)
    settings = load_settings({"model": {"_target_": f"reloaded_models.{kind.__name__}"}})
    model, x = kind(), torch.randn(2, 4)
    model(x)
    check_reloads(settings, model, Inputs((x,)))


def test_what_can_be_loaded_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    check(Plain, monkeypatch)


@pytest.mark.parametrize("kind", [Varies, Lazy])
def test_what_is_another_network_each_time_is_refused(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="same network each time it is built"):
        check(kind, monkeypatch)


def test_models_that_differ_are_told_apart() -> None:
    model, other = Plain(), Plain()
    x = Inputs((torch.randn(2, 4),))
    assert apart(model, model, x) is None
    assert "outputs differ" in str(apart(model, other, x))
    assert "shape" in str(apart(Plain(3), model, x))
