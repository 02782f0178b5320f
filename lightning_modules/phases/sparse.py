"""Training under masks.

Pruned weights either stay at zero, or keep being trained while the model does not use them. A
regrowth rule may change the masks.
"""

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
    """Applies `masks` while a task's `model` is trained; `regrowth` changes them in place.

    Hard: pruned weights are zero at every moment, and so is the optimizer's memory of them.
    Soft (with `soft`, or with a regrowth that is `dense`): the forward and backward passes see
    masked weights, and the optimizer updates the dense weights. Validation sees masked weights.
    After training the model has the dense weights.
    """

    def __init__(
        self, masks: Masks, regrowth: Regrowth | None = None, soft: bool = False, seed: int = 0
    ) -> None:
        self.masks = masks
        self.regrowth = regrowth
        self.soft = soft or (regrowth is not None and regrowth.dense)
        self._generator = torch.Generator().manual_seed(seed)
        self._dense: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._parameters = dict(module.model.named_parameters())  # type: ignore[operator,union-attr]
        self._kept: dict[str, int] = {}
        for name, mask in self.masks.items():
            self.masks[name] = mask.to(self._parameters[name].device)
            self._kept[name] = int(mask.sum())
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
        if self._moves_at(step):
            self._move(step / max(1, trainer.max_steps))
        if not self.soft:
            self._mask_gradients()
            self._forget(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._hold()  # some optimizers move weights that have no gradient

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

    def _moves_at(self, step: int) -> bool:
        """Whether the mask moves at this step, counted from 1.

        It moves one step after each multiple of `every`. Validation runs at such multiples; by
        then the norms have seen batches under the new mask.
        """
        if self.regrowth is None or step == 1:
            return False
        return (step - 1) % self.regrowth.every == 0

    @torch.no_grad()
    def _move(self, progress: float) -> None:
        assert self.regrowth is not None
        for name, mask in self.masks.items():
            parameter = self._parameters[name]
            if parameter.grad is None:
                continue
            kept = self._kept[name]
            weight = parameter.detach()
            moved = self.regrowth(weight, mask, parameter.grad, kept, progress, self._generator)
            mask.copy_(moved)
        self._hold()
        self._remembers = True

    @torch.no_grad()
    def _hold(self) -> None:
        """Hard masks only: set the pruned weights to zero."""
        if not self.soft:
            for name, mask in self.masks.items():
                self._parameters[name].mul_(mask)

    def _mask_gradients(self) -> None:
        for name, mask in self.masks.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    @torch.no_grad()
    def _forget(self, optimizer: Optimizer) -> None:
        """Clear the optimizer's memory of pruned weights, once after each change of the mask.

        Momentum would keep moving a dropped weight. A weight that is regrown starts without any.
        """
        if self._remembers:
            for name, mask in self.masks.items():
                state = optimizer.state.get(self._parameters[name], {})
                for entry in state.values():
                    if isinstance(entry, Tensor) and entry.shape == mask.shape:
                        entry.mul_(mask)
        self._remembers = False

    @torch.no_grad()
    def _cover(self) -> None:
        """Soft masks only: put the dense weights aside and mask the model's."""
        if self.soft and not self._dense:
            for name, mask in self.masks.items():
                self._dense[name] = self._parameters[name].detach().clone()
                self._parameters[name].mul_(mask)

    @torch.no_grad()
    def _uncover(self) -> None:
        """Give the model back the dense weights that `_cover` has put aside."""
        for name, dense in self._dense.items():
            self._parameters[name].copy_(dense)
        self._dense = {}


class Zeroed(Callback):
    """Soft filter pruning (He et al. 2018, algorithm 1).

    `zero` sets the pruned units to zero; it is called before each validation.
    """

    def __init__(self, zero: Callable[[], None]) -> None:
        self.zero = zero

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.zero()
