"""Checkpoints as training scripts leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_modules.errors import DataError
from lightning_modules.tasks import Whole
from orchestrator.search.lab.checkpoint import fill_from
from tests.contracts.own_code import LitTwoTower


class Net(nn.Module):
    """Its body is called `model`, as in many wrappers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 16, 3))
        self.fc = nn.Linear(16, 10)


def named(prefix: str, state: dict[str, Tensor], **more: Tensor) -> dict[str, Tensor]:
    return {**{prefix + name: value for name, value in state.items()}, **more}


def compiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("model.", "model._orig_mod."): value for name, value in state.items()}


WRITTEN: dict[str, tuple[Any, str]] = {
    "plain": (lambda s: s, ""),
    "parallel": (lambda s: named("module.", s), "without 'module.'"),
    "compiled": (lambda s: named("_orig_mod.", s), ""),
    "compiled inside": (compiled, ""),
    "parallel and compiled": (lambda s: named("module._orig_mod.", s), "without 'module.'"),
    "lightning": (
        lambda s: {"state_dict": named("net.", s, **{"loss.weight": torch.ones(3)}), "epoch": 3},
        "left out: loss.weight",
    ),
    "model": (lambda s: {"epoch": 3, "model": s}, ""),
    "model_state_dict": (lambda s: {"model_state_dict": s, "optimizer": {"lr": 0.1}}, ""),
    "nested": (lambda s: {"state_dict": named("model.module.", s)}, "without 'model.module.'"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_usual_wrappers_and_prefixes_are_understood_and_said(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, said = WRITTEN[name]
    trained, fresh = Net(), Net()
    path = tmp_path / "weights.pt"
    torch.save(write(trained.state_dict()), path)
    fill_from(path, fresh)
    for one, other in zip(fresh.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other)
    told = capsys.readouterr().err
    assert said in told
    assert bool(told) == bool(said)


def test_a_prefix_is_taken_off_a_safetensors_file_too_and_tied_weights_may_stand_once(
    tmp_path: Path,
) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

    trained, fresh = Tied(), Tied()
    state = trained.state_dict()
    del state["second.weight"]
    save_file(named("net.", state), tmp_path / "w.safetensors")
    fill_from(tmp_path / "w.safetensors", fresh)
    assert torch.equal(fresh.second.weight, trained.first.weight)


def test_a_whole_module_is_filled_by_its_own_checkpoint_or_by_its_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, path = LitTwoTower(), tmp_path / "w.pt"
    torch.save({"state_dict": trained.state_dict()}, path)
    whole = Whole(LitTwoTower())
    fill_from(path, whole)
    assert torch.equal(whole.module.net.head.weight, trained.net.head.weight)
    assert capsys.readouterr().err == ""
    torch.save(trained.net.state_dict(), path)
    whole = Whole(LitTwoTower())
    fill_from(path, whole)
    assert torch.equal(whole.module.net.head.weight, trained.net.head.weight)
    assert "it fills 'net.' alone" in capsys.readouterr().err


def test_a_misfit_names_three_keys_and_how_many_more(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(named("net.", nn.Sequential(*[nn.Linear(2, 2)] * 4).state_dict()), path)
    with pytest.raises(DataError) as refused:
        fill_from(path, Net())
    message = str(refused.value)
    assert "only the model has fc.bias, fc.weight, model.0.bias and 3 more" in message
    assert "and 5 more" in message
    assert len(message) < 400
    torch.save(Net(width=4).state_dict(), path)
    with pytest.raises(DataError, match=r"size mismatch for model.0.weight: \[4, 1, 3, 3\] in the"):
        fill_from(path, Net())
