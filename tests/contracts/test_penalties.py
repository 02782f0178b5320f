"""What every penalty must do: a scalar on every way of coupling, whose gradient shrinks what is to
be pruned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from criteria_models import MAKERS, half, make, structure_of
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_modules.data import digits
from lightning_modules.errors import ConfigError
from lightning_modules.models import SmallResNet
from lightning_modules.phases.fit import Optimization, fit
from lightning_modules.phases.penalised import Penalised
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.penalties import GroupLasso, Growing, NormScale, Penalty
from lightning_modules.pruning.removal import remove
from lightning_modules.pruning.structure import Keep, Structure
from lightning_modules.recipe import Recipe
from lightning_modules.tasks import Classification

CPU = torch.device("cpu")
DATA = digits()


def penalties() -> dict[str, Penalty]:
    """Those of the YAMLs in conf/method."""
    found = {}
    for path in sorted((Path(__file__).parents[2] / "conf" / "method").glob("*.yaml")):
        if sparsify := yaml.safe_load(path.read_text()).get("phases", {}).get("sparsify"):
            found[path.stem] = Recipe.from_json(sparsify["penalty"]).build()
    return found


PENALTIES = penalties()
NO_NORMS = {"attention", "recurrent"}


class Two(nn.Module):
    """Three hidden units with weights of their own on both sides, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = (
            nn.Conv2d(1, 3, (1, 2)),
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 2, 1),
        )
        with torch.no_grad():
            self.hidden.weight.copy_(
                torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 12.0]]).reshape(3, 1, 1, 2)
            )
            self.norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.hidden(x))))


def two() -> tuple[nn.Module, Structure]:
    model = Two()
    structure = discover(model, (torch.zeros(1, 1, 4, 4),))
    assert structure.sizes.tolist() == [3]
    return model, structure


def value(
    penalty: Penalty, model: nn.Module, structure: Structure, keep: Keep, progress: float = 1.0
) -> float:
    return float(penalty(model, structure, keep, progress).detach())


def test_all_penalties_have_a_configuration() -> None:
    assert {type(penalty) for penalty in PENALTIES.values()} == {GroupLasso, NormScale, Growing}


def test_closed_forms() -> None:
    model, structure = two()
    everything, first = structure.full(), np.array([True, False, False])
    assert value(GroupLasso(0.1), model, structure, everything) == pytest.approx(
        0.1 * 2**0.5 * (5 + 2 + 13)
    )
    assert value(NormScale(0.1), model, structure, everything) == pytest.approx(0.1 * (1 + 2 + 0.5))
    assert value(Growing(0.1), model, structure, first, 0.5) == pytest.approx(
        0.5 * 0.1 * 0.5 * (4 + 169)
    )
    assert value(Growing(0.1), model, structure, first, 1.0) == pytest.approx(0.5 * 0.1 * (4 + 169))
    assert value(Growing(0.1), model, structure, everything) == 0.0


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"frozen"}))
def test_a_penalty_is_a_scalar_whose_gradient_shrinks_weights(kind: str, name: str) -> None:
    penalty, model, structure = PENALTIES[kind], make(name), structure_of(name)
    if isinstance(penalty, NormScale) and name in NO_NORMS:
        with pytest.raises(
            ConfigError, match="NormScale needs norm layers with scales over prunable units"
        ):
            penalty(model, structure, half(structure), 0.5)
        return
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = penalty(model, structure, half(structure), 0.5)
    assert found.shape == ()
    assert float(found.detach()) > 0.0
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(found, list(parameters.values()), allow_unused=True)
    moved = {
        key: g
        for key, g in zip(parameters, gradients, strict=True)
        if g is not None and bool((g != 0).any())
    }
    assert moved
    assert all(
        bool((gradient * parameters[key] >= 0).all()) for key, gradient in moved.items()
    )  # towards zero
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"frozen"}))
def test_a_penalty_on_rounds_is_the_sum_over_groups_of_what_makes_them(name: str) -> None:
    """By hand, from the table: every weight that produces a unit counts once for it."""
    model, structure = make(name), structure_of(name)
    parameters = dict(model.named_parameters())
    expected = 0.0
    for unit in range(structure.n_units):
        square, number, seen = 0.0, 0, set()
        for group in structure.groups:
            for member in group.members:
                axis = (member.tensor, member.dim)
                if (
                    member.role == "in"
                    or axis in seen
                    or parameters.get(member.tensor, torch.zeros(1)).dim() < 2
                ):
                    continue
                seen.add(axis)
                places = torch.from_numpy(np.flatnonzero(structure.table[axis] == unit))
                part = parameters[member.tensor].detach().index_select(member.dim, places)
                square, number = square + float(part.square().sum()), number + part.numel()
        expected += (number * square) ** 0.5
    assert value(GroupLasso(1.0), model, structure, structure.full()) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("kind", PENALTIES)
def test_a_cut_model_is_penalised_for_what_it_still_has(kind: str) -> None:
    model, structure = make("residual"), structure_of("residual")
    alive = half(structure)
    smaller, rest = remove(model, structure, alive), structure.restrict(alive)
    keep = alive.copy()
    keep[[group.start + int(np.argmax(alive[group.units])) for group in structure.groups]] = False
    found = PENALTIES[kind](smaller, rest, keep, 1.0)
    assert 0.0 < float(found.detach()) < value(PENALTIES[kind], model, structure, keep)
    found.backward()


def test_fixed_channels_are_not_penalised() -> None:
    model = make("dense")  # its last layer's ten outputs stay
    structure = structure_of("dense")
    GroupLasso().__call__(model, structure, structure.full(), 0.0).backward()
    assert model.get_parameter("fc.weight").grad is None


def test_no_gradient_of_a_dead_unit_is_a_number_less() -> None:
    model, structure = two()
    with torch.no_grad():
        model.get_parameter("hidden.weight")[0] = 0.0
        model.get_parameter("norm.weight")[0] = 0.0
    total = GroupLasso()(model, structure, structure.full(), 1.0) + NormScale()(
        model, structure, structure.full(), 1.0
    )
    total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


class Bare(nn.Module):
    """Nothing here can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("kind", PENALTIES)
def test_a_model_with_nothing_to_penalise_is_refused(kind: str) -> None:
    model = Bare()
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    with pytest.raises(
        ConfigError, match=r"needs (units with weights that produce them|norm layers)"
    ):
        PENALTIES[kind](model, structure, structure.full(), 0.5)


def test_slopes_are_no_scales() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.Conv2d(4, 2, 1))
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    assert ("1.weight", 0) in structure.table
    with pytest.raises(ConfigError, match="NormScale needs norm layers"):
        NormScale()(model, structure, structure.full(), 0.5)


@pytest.mark.parametrize("kind", PENALTIES)
def test_a_weight_that_is_not_positive_is_refused(kind: str) -> None:
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"penalty\.weight must be above 0"):
            type(PENALTIES[kind])(weight=weight)  # type: ignore[call-arg]


class Gradients(Callback):
    """Those the optimizer is given at the first step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Any
    ) -> None:
        if not self.found:
            model: nn.Module = module.model  # type: ignore[assignment]
            self.found = {
                name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
            }


def train(model: nn.Module, *callbacks: Callback, steps: int = 20) -> None:
    torch.manual_seed(0)
    how = Optimization(Recipe("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}), warmup=0.0)
    task = Classification(model, 10)
    fit(
        task,
        DATA.train_batches(0),
        how,
        rounds=1,
        round_steps=steps,
        device=CPU,
        callbacks=callbacks,
    )


def small() -> tuple[SmallResNet, Structure]:
    torch.manual_seed(3)
    return SmallResNet(10, width=4), structure_of("residual")


@pytest.mark.parametrize("kind", PENALTIES)
def test_the_gradient_in_training_is_that_of_the_loss_with_the_penalty_added(kind: str) -> None:
    (model, structure), (twin, _) = small(), small()
    keep, progress = half(structure), []

    def penalty(model: nn.Module, at: float) -> Tensor:
        progress.append(at)
        return PENALTIES[kind](model, structure, keep, at)

    found = Gradients()
    train(model, Penalised(penalty), found, steps=4)
    assert progress == [0.25, 0.5, 0.75, 1.0]
    loss = Classification(twin.train(), 10).training_step(next(iter(DATA.train_batches(0))), 0)
    (loss + PENALTIES[kind](twin, structure, keep, 0.25)).backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(found.found[name], parameter.grad)


def test_what_is_frozen_is_left_alone_and_said_where_it_is_all() -> None:
    model, structure = small()
    model.conv1.weight.requires_grad_(False)
    before = model.conv1.weight.clone()
    train(
        model,
        Penalised(lambda model, at: GroupLasso(0.01)(model, structure, structure.full(), at)),
        steps=2,
    )
    assert torch.equal(model.conv1.weight, before)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("fc" in name)
    with pytest.raises(ConfigError, match="all that it looks at are frozen"):
        train(
            model,
            Penalised(lambda model, at: GroupLasso(0.01)(model, structure, structure.full(), at)),
            steps=2,
        )


def trained(penalty: Penalty | None, keep: Keep | None = None) -> tuple[SmallResNet, Structure]:
    model, structure = small()
    chosen = structure.full() if keep is None else keep
    callbacks = (
        []
        if penalty is None
        else [Penalised(lambda model, at: penalty(model, structure, chosen, at))]
    )
    train(model, *callbacks)
    return model, structure


def norms(model: nn.Module, structure: Structure, units: Keep) -> float:
    """Sum of squares of the producing weights of these units."""
    return value(Growing(2.0), model, structure, ~units)


def test_penalties_shrink_what_they_are_on() -> None:
    plain, structure = trained(None)
    everything, doomed = structure.full(), ~half(structure)
    lasso, _ = trained(GroupLasso(3e-3))
    growing, _ = trained(Growing(1.0), ~doomed)
    slim, _ = trained(NormScale(0.1))
    ratio = norms(lasso, structure, everything) / norms(plain, structure, everything)
    assert ratio < 0.9
    went = norms(growing, structure, doomed) / norms(plain, structure, doomed)
    stayed = norms(growing, structure, ~doomed) / norms(plain, structure, ~doomed)
    assert went < 0.5
    assert stayed > 0.9
    scales = [value(NormScale(1.0), model, structure, everything) for model in (slim, plain)]
    assert scales[0] < 0.9 * scales[1]
