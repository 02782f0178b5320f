"""Training under masks: what is pruned stays zero, what is hidden is trained, what moves begins
anew.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_modules.data import digits
from lightning_modules.models import SmallResNet
from lightning_modules.phases.fit import Optimization, evaluate, fit
from lightning_modules.phases.sparse import Sparse, Zeroed
from lightning_modules.pruning import masks as unit_masks
from lightning_modules.pruning.discovery import discover
from lightning_modules.pruning.regrowth import RandomRegrowth, Regrowth, RigL, Surgery
from lightning_modules.pruning.thresholds import choose
from lightning_modules.pruning.weights import Masks, apply
from lightning_modules.recipe import Recipe
from lightning_modules.tasks import Classification

CPU = torch.device("cpu")
DATA = digits()
RECIPES = {
    "nesterov": Recipe(
        "torch.optim.SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    ),
    "adam": Recipe("torch.optim.Adam", {"lr": 0.01, "weight_decay": 0.01}),
    "adamw": Recipe("torch.optim.AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop": Recipe("torch.optim.RMSprop", {"lr": 0.001, "momentum": 0.9, "centered": True}),
}


def small(seed: int = 0) -> SmallResNet:
    torch.manual_seed(seed)
    return SmallResNet(10, width=4)


def masks_for(model: nn.Module, share: float = 0.5) -> Masks:
    """The largest `share` of every tensor with more than one dimension."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            size = parameter.detach().abs()
            found[name] = size > size.flatten().kthvalue(round((1 - share) * size.numel())).values
    return found


def train(
    model: nn.Module,
    *callbacks: Callback,
    rounds: int = 2,
    steps: int = 6,
    recipe: str = "nesterov",
) -> list[Any]:
    """Validation metrics after each round."""
    seen: list[Any] = []
    torch.manual_seed(1)
    fit(
        Classification(model, 10),
        DATA.train_batches(1),
        Optimization(RECIPES[recipe], clip_norm=1.0),
        rounds=rounds,
        round_steps=steps,
        device=CPU,
        val=DATA.val_dataloader(),
        on_round=lambda unit, metrics: not seen.append(metrics),
        callbacks=callbacks,
    )
    return seen


class Watch(Callback):
    """Calls `look(model, optimizer, step)` after each optimizer step."""

    def __init__(self, look: Callable[[nn.Module, torch.optim.Optimizer, int], None]) -> None:
        self.look, self.steps = look, 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.steps += 1
        self.look(module.model, trainer.optimizers[0], trainer.global_step)  # type: ignore[arg-type]


class Remembering(Callback):
    """An optimizer's state of before, loaded as a later phase would."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for group in trainer.optimizers[0].param_groups:
            for parameter in group["params"]:
                trainer.optimizers[0].state[parameter] = {
                    "momentum_buffer": torch.ones_like(parameter)
                }


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_nothing_is_left(
    model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks
) -> None:
    for name, parameter in model.named_parameters():
        if name in masks:
            assert (parameter[~masks[name]] == 0).all(), name
            for key, entry in optimizer.state[parameter].items():
                if isinstance(entry, Tensor) and entry.shape == parameter.shape:
                    assert (entry[~masks[name]] == 0).all(), (name, key)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "regrowth", [None, RigL(every=2), RandomRegrowth(every=2)], ids=["fixed", "rigl", "set"]
)
def test_pruned_weights_and_their_momenta_are_zero_after_every_step(
    recipe: str, regrowth: Regrowth | None
) -> None:
    model = small()
    masks = masks_for(model)
    before = {name: mask.clone() for name, mask in masks.items()}
    first = Watch(lambda model, optimizer, step: assert_nothing_is_left(model, optimizer, masks))
    train(
        model, first, Sparse(masks, regrowth), recipe=recipe
    )  # the first callback looks before Sparse can mend
    assert first.steps == 12
    values = values_of(model)
    assert all((values[name] == 0).sum() >= (~mask).sum() for name, mask in masks.items())
    moved = any(not torch.equal(mask, before[name]) for name, mask in masks.items())
    assert moved == (regrowth is not None)
    assert all(int(mask.sum()) == int(before[name].sum()) for name, mask in masks.items())


@pytest.mark.parametrize("order", [1, -1])
def test_momenta_carried_along_are_forgotten_where_weights_are_pruned(order: int) -> None:
    model = small()
    masks = masks_for(model)
    watch = Watch(lambda model, optimizer, step: assert_nothing_is_left(model, optimizer, masks))
    train(model, watch, *[Sparse(masks), Remembering()][::order])
    assert watch.steps == 12


def test_what_rigl_grows_begins_at_zero_without_momentum() -> None:
    """One step of SGD from zero is the rate times the gradient, clipped with that of the others."""
    model, rates, moves = small(), [], []
    masks = masks_for(model)
    seen = {name: mask.clone() for name, mask in masks.items()}

    def look(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        for name, parameter in model.named_parameters():
            if name in masks:
                grown = masks[name] & ~seen[name]
                moves.append(int(grown.sum()))
                buffer = optimizer.state[parameter]["momentum_buffer"][grown]
                torch.testing.assert_close(
                    buffer, parameter.grad[grown]
                )  # no momentum but of this step
                torch.testing.assert_close(parameter[grown], -rates[-1] * 1.9 * buffer)
                seen[name].copy_(masks[name])

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    train(model, Rates(), Sparse(masks, RigL(every=3)), Watch(look), rounds=1, steps=12)
    assert sum(moves) > 0


def test_the_exchanged_share_falls_along_the_cosine_to_nothing() -> None:
    model = small()
    masks = masks_for(model)
    seen = {name: mask.clone() for name, mask in masks.items()}
    moved: dict[int, int] = {}
    name = max(masks, key=lambda name: masks[name].numel())

    def look(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if (count := int((masks[name] & ~seen[name]).sum())) > 0:
            moved[step] = count
        seen[name].copy_(masks[name])

    kept = int(masks[name].sum())
    train(
        model, Sparse(masks, RigL(every=4, fraction=0.4, end=0.6)), Watch(look), rounds=4, steps=10
    )
    expected = {
        step: round(0.2 * (1 + math.cos(math.pi * step / 24)) * kept) for step in range(5, 24, 4)
    }
    assert moved == expected


def test_random_regrowth_follows_the_seed() -> None:
    def final(seed: int) -> Masks:
        model = small()
        masks = masks_for(model)
        train(model, Sparse(masks, RandomRegrowth(every=2), seed=seed), rounds=1)
        return masks

    first, again, other = final(0), final(0), final(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_fully_kept_model_is_trained_as_without_masks() -> None:
    plain, hard, soft = small(), small(), small()
    whole = {
        name: torch.ones_like(p, dtype=torch.bool)
        for name, p in plain.named_parameters()
        if p.dim() > 1
    }
    train(plain)
    train(hard, Sparse(dict(whole)))
    train(soft, Sparse(dict(whole), soft=True))
    for model in (hard, soft):
        assert all(
            torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True)
        )


def test_soft_weights_are_trained_under_the_mask_and_validated_behind_it() -> None:
    model = small()
    masks, begin = masks_for(model, 0.2), values_of(model)
    metrics = train(model, Sparse(masks, soft=True))
    after = values_of(model)
    for name, mask in masks.items():
        assert (after[name][~mask] != 0).all()
        assert (after[name][~mask] != begin[name][~mask]).float().mean() > 0.9
    hidden = copy.deepcopy(model)
    apply(hidden, masks)
    assert evaluate(Classification(hidden, 10), DATA.val_dataloader(), CPU) == pytest.approx(
        metrics[-1]
    )
    assert evaluate(Classification(model, 10), DATA.val_dataloader(), CPU)["loss"] != pytest.approx(
        metrics[-1]["loss"]
    )


def test_soft_gradients_are_those_of_the_masked_model() -> None:
    model = small()
    masks, twin, seen = masks_for(model), small(), {}

    class First(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
            if not seen:
                seen.update({name: p.grad.clone() for name, p in module.model.named_parameters()})

    train(model, Sparse(masks, soft=True), First(), rounds=1, steps=1)
    apply(twin, masks)
    torch.manual_seed(1)
    Classification(twin.train(), 10).training_step(next(iter(DATA.train_batches(1))), 0).backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad)  # hidden weights have one too


def test_without_a_step_the_dense_weights_come_back_bit_for_bit() -> None:
    model = small()
    begin = values_of(model)
    RECIPES["still"] = Recipe("torch.optim.SGD", {"lr": 0.0})
    try:
        train(model, Sparse(masks_for(model), soft=True), recipe="still")
    finally:
        del RECIPES["still"]
    assert all(torch.equal(value, begin[name]) for name, value in values_of(model).items())


class Failing(Callback):
    """Raises in the hook of this name, from its second call on."""

    def __init__(self, hook: str) -> None:
        self.calls = 0

        def fail(*_: Any) -> None:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("on purpose")

        setattr(self, hook, fail)


@pytest.mark.parametrize(
    "hook",
    [
        "on_train_batch_start",
        "on_before_backward",
        "on_before_optimizer_step",
        "on_validation_batch_end",
    ],
)
def test_an_exception_leaves_the_dense_weights_in_place(hook: str) -> None:
    model = small()
    masks = masks_for(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        train(model, Sparse(masks, soft=True), Failing(hook))
    values = values_of(model)
    assert all((values[name][~mask] != 0).all() for name, mask in masks.items())


def test_a_stopped_training_leaves_the_dense_weights_in_place() -> None:
    model = small()
    masks = masks_for(model)
    fit(
        Classification(model, 10),
        DATA.train_batches(1),
        Optimization(RECIPES["adam"]),
        rounds=3,
        round_steps=2,
        device=CPU,
        val=DATA.val_dataloader(),
        on_round=lambda unit, metrics: False,
        callbacks=[Sparse(masks, soft=True)],
    )
    values = values_of(model)
    assert all((values[name][~mask] != 0).all() for name, mask in masks.items())


def test_surgery_lets_pruned_weights_come_back_with_what_they_have_learnt() -> None:
    model = small()
    masks = masks_for(model, 0.3)
    before = {name: mask.clone() for name, mask in masks.items()}
    train(model, Sparse(masks, Surgery(every=2, margin=0.05)), rounds=2, steps=10)
    values = values_of(model)
    back = torch.cat([values[name][mask & ~before[name]] for name, mask in masks.items()])
    assert len(back) > 0
    assert (back != 0).all()
    sizes = [sum(int(mask.sum()) for mask in found.values()) for found in (before, masks)]
    assert sizes[1] == pytest.approx(
        sizes[0], rel=0.1
    )  # the plan's number, up to what lies in the band


def test_zeroed_units_are_zero_at_each_validation_and_trained_between() -> None:
    model = small()
    structure = discover(model, (torch.zeros(1, 1, 8, 8),))
    keep = choose(
        structure,
        torch.rand(structure.n_units).double().numpy(),
        structure.full(),
        structure.sizes // 2,
    )
    masked = unit_masks.masked(model, structure, keep)
    doomed = {
        name: (a != b).detach()
        for (name, a), b in zip(model.named_parameters(), masked.parameters(), strict=True)
    }

    def sizes() -> float:
        return sum(
            float(p.detach()[doomed[name]].abs().sum()) for name, p in model.named_parameters()
        )

    between, validated = [], []

    class AtValidation(Callback):
        def on_validation_end(self, trainer: Trainer, module: Any) -> None:
            validated.append(sizes())

    zeroed = Zeroed(lambda: unit_masks.zero(model, structure, keep))
    train(model, zeroed, AtValidation(), Watch(lambda *_: between.append(sizes())), rounds=3)
    assert validated == [0.0, 0.0, 0.0]
    assert min(between) > 0.0
    assert sizes() == 0.0
