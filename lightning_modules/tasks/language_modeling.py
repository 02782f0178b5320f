"""Language modeling: each token from those before it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.errors import ConfigError
from lightning_modules.tasks.classification import logits_of
from lightning_modules.tasks.divergence import softened_kl
from lightning_modules.tasks.metrics import Direction
from lightning_modules.tasks.sequences import named_inputs


class Perplexity(Metric):
    """exp of the mean cross-entropy over all tokens that were seen, in any batches."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("total", zero, dist_reduce_fx="sum")
        self.add_state("tokens", zero.clone(), dist_reduce_fx="sum")

    def update(self, losses: Tensor) -> None:
        """`losses` (tokens,), in nats."""
        self.total += losses.double().sum()
        self.tokens += losses.numel()

    def compute(self) -> Tensor:
        return (self.total / self.tokens).exp()


class LanguageModeling(LightningModule):
    """Cross-entropy of logits (N, length, vocabulary) against the next labels (N, length).

    The network takes all of a batch but `labels` and `index`, by name. Of several outputs those
    called `logits`, or else the first ones, are the logits. Labels below 0 do not count.
    """

    directions: ClassVar[dict[str, Direction]] = {"perplexity": "minimize"}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.perplexity = Perplexity()

    def check(self, outputs: Any, batch: Any) -> None:
        """Errors: ConfigError for outputs that are not logits of every label for each token."""
        labels = batch["labels"]
        tokens = int(labels.max()) + 1
        logits = logits_of(outputs)
        shape = f"a {type(outputs).__name__} without `logits`"
        if isinstance(logits, Tensor):
            if logits.shape[:-1] == labels.shape and logits.shape[-1] >= tokens:
                return
            shape = str(tuple(logits.shape))
        raise ConfigError(
            f"the model's output must be {tuple(labels.shape)} and a logit for each of at least "
            f"{tokens} tokens; it is {shape}; see model.vocab_size"
        )

    def divergence(self, outputs: Any, dense: Any, temperature: float = 1.0) -> Tensor:
        """The mean over all positions."""
        return softened_kl(logits_of(outputs), logits_of(dense), temperature, dim=-1)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return self._losses(batch).mean()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.perplexity.update(self._losses(batch))
        self.log("perplexity", self.perplexity, on_epoch=True)

    def _losses(self, batch: Any) -> Tensor:
        """The cross-entropy of each token that has one before it, in nats."""
        logits = logits_of(self.model(**named_inputs(batch)))[:, :-1]
        following = batch["labels"][:, 1:]
        counts = following >= 0
        return F.cross_entropy(logits[counts], following[counts], reduction="none")
