"""Training under masks: pruned weights stay at zero, or are trained on out of sight; a rule may move the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_modules.pruning.regrowth import Regrowth
from lightning_modules.pruning.weights import Masks


class Sparse(Callback):
    """Holds `masks` (moved in place by `regrowth`) while a task's `model` is trained.

    Hard: pruned weights are zero at every moment, and so is what the optimizer remembers of them.
    Soft (`soft`, or a regrowth that is `dense`): forward and backward see the masked weights, the optimizer moves the
    dense ones; validation sees the masked ones; afterwards the model holds the dense ones.
    """

    def __init__(
        self, masks: Masks, regrowth: Regrowth | None = None, soft: bool = False, seed: int = 0
    ) -> None:
        self.masks, self.regrowth = masks, regrowth
        self.soft = soft or (regrowth is not None and regrowth.dense)
        self._generator = torch.Generator().manual_seed(seed)
        self._dense: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._parameters = dict(module.model.named_parameters())  # type: ignore[operator,union-attr]
        self.masks.update(
            {name: mask.to(self._parameters[name].device) for name, mask in self.masks.items()}
        )
        self._kept = {name: int(mask.sum()) for name, mask in self.masks.items()}
        self._remembers = True
        self._hold()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        self._cover()

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._uncover()
        step = trainer.global_step + 1
        # a step late: validation, at round numbers, sees norms that have met the new mask
        if self.regrowth is not None and step > 1 and (step - 1) % self.regrowth.every == 0:
            self._move(step / max(1, trainer.max_steps))
        if not self.soft:
            for name, mask in self.masks.items():
                if (gradient := self._parameters[name].grad) is not None:
                    gradient.mul_(mask)
            self._forget(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._hold()  # some optimizers move what has no gradient

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._cover()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._uncover()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._uncover()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._uncover()

    @torch.no_grad()
    def _move(self, progress: float) -> None:
        assert self.regrowth is not None
        for name, mask in self.masks.items():
            parameter = self._parameters[name]
            if parameter.grad is not None:
                kept, weight = self._kept[name], parameter.detach()
                mask.copy_(
                    self.regrowth(weight, mask, parameter.grad, kept, progress, self._generator)
                )
        self._hold()
        self._remembers = True

    @torch.no_grad()
    def _hold(self) -> None:
        if not self.soft:
            for name, mask in self.masks.items():
                self._parameters[name].mul_(mask)

    @torch.no_grad()
    def _forget(self, optimizer: Optimizer) -> None:
        """Momentum would move a dropped weight on, and one that comes back: it begins anew."""
        if self._remembers:
            for name, mask in self.masks.items():
                for entry in optimizer.state.get(self._parameters[name], {}).values():
                    if isinstance(entry, Tensor) and entry.shape == mask.shape:
                        entry.mul_(mask)
        self._remembers = False

    @torch.no_grad()
    def _cover(self) -> None:
        if self.soft and not self._dense:
            for name, mask in self.masks.items():
                self._dense[name] = self._parameters[name].detach().clone()
                self._parameters[name].mul_(mask)

    @torch.no_grad()
    def _uncover(self) -> None:
        for name, dense in self._dense.items():
            self._parameters[name].copy_(dense)
        self._dense = {}


class Zeroed(Callback):
    """Soft filter pruning (He et al. 2018, algorithm 1): `zero` sets units to zero before each validation."""

    def __init__(self, zero: Callable[[], None]) -> None:
        self.zero = zero

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.zero()
