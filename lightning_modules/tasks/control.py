"""Control: a policy that acts in an environment, by reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError

from lightning_modules.data.episodes import SEEDS, UPDATE
from lightning_modules.errors import ConfigError
from lightning_modules.tasks.divergence import softened_kl, squared_error
from lightning_modules.tasks.metrics import Direction
from lightning_modules.tasks.rollouts import Array, Policy, evaluating, play, transitions

CLIP = 0.2
"""The loss gains nothing from an action that became more probable, or less, by more than this."""
VALUE_WEIGHT = 2.0
"""Weight of the critic's squared error in the loss."""
SHARE = 4
"""An update learns from one in so many transitions of its rollout."""
MOST_SHOWN = 4096
"""Most transitions of whole episodes that a batch keeps. Its returns are those of all episodes."""
RETURNS = "returns"
"""The name of the returns (n,) of a batch that has been played."""


class Control(LightningModule):
    """Proximal policy optimisation (Schulman et al. 2017, eq. 9), clipped.

    The network's outputs are a dict: `policy` (N, actions), the logits of the actions, and `value`
    (N,), the expected discounted return in units of a reward (return x (1 - discount)).

    A batch of `Episodes` is played with the current network when it reaches the device, and is a
    rollout from then on. Validation plays whole episodes by the most probable actions:
    `mean_return` is the mean of the undiscounted returns. `value_error` is the root of the critic's
    mean squared error there. `entropy` is the weight of the policy's entropy in the loss.
    Errors: ConfigError for a discount outside of [0, 1).
    """

    directions: ClassVar[dict[str, Direction]] = {
        "mean_return": "maximize",
        "value_error": "minimize",
    }

    def __init__(
        self, model: nn.Module, data: Any, discount: float = 0.99, entropy: float = 0.01
    ) -> None:
        super().__init__()
        if not 0.0 <= discount < 1.0:
            raise ConfigError(f"task.discount must lie in [0, 1); got {discount}")
        self.model = model
        self.data = data
        self.discount = discount
        self.entropy = entropy
        self.mean_return = MeanMetric()
        self.value_error = MeanSquaredError(squared=False)
        self._seeds: list[int] = []
        self._rollout: dict[str, Tensor] = {}

    def check(self, outputs: Any, batch: Any) -> None:
        """Errors: ConfigError for outputs that are not a logit per action and a value."""
        shapes: Any = f"a {type(outputs).__name__}"
        if isinstance(outputs, Mapping):
            shapes = {name: tuple(values.shape[1:]) for name, values in outputs.items()}
        wanted = {"policy": (self.data.actions,), "value": ()}
        if shapes != wanted:
            raise ConfigError(
                f"the model's outputs must be a dict of these shapes, beside the batch: {wanted}; "
                f"they are {shapes}; see model.actions"
            )

    def divergence(self, outputs: Any, dense: Any, temperature: float = 1.0) -> Tensor:
        """That of the policies, and the values' squared error in multiples of their variance."""
        apart = softened_kl(outputs["policy"], dense["policy"], temperature)
        return apart + squared_error(outputs["value"], dense["value"])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.played(batch)

    def played(self, batch: Any) -> dict[str, Tensor]:
        """The batch as transitions, tensors (m, ...) by name, and `returns`.

        All updates of a rollout learn from one play, that of the first. A batch that was played
        stays as it is.
        """
        if RETURNS in batch:
            return batch
        seeds = batch[SEEDS].tolist()
        if UPDATE not in batch:
            whole = self._transitions(seeds, batch[SEEDS].device, explore=False)
            return _part(whole, min(MOST_SHOWN, _count(whole)), seeds[0])
        update = int(batch[UPDATE])
        if update == 0 or seeds != self._seeds:
            self._rollout = self._transitions(seeds, batch[SEEDS].device, explore=True)
            self._seeds = seeds
        share = max(1, _count(self._rollout) // SHARE)
        return _part(self._rollout, share, seeds[0] + update)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        batch = self.played(batch)
        outputs = self.model(batch["observations"])
        logs = F.log_softmax(outputs["policy"], 1)
        taken = logs.gather(1, batch["actions"][:, None])[:, 0]
        ratio = (taken - batch["log_probabilities"]).exp()
        gain = ratio * batch["advantages"]
        clipped = ratio.clamp(1.0 - CLIP, 1.0 + CLIP) * batch["advantages"]
        entropy = -(logs.exp() * logs).sum(1)
        error = F.mse_loss(outputs["value"], batch["targets"])
        policy = torch.minimum(gain, clipped).mean() + self.entropy * entropy.mean()
        return VALUE_WEIGHT * error - policy

    def validation_step(self, batch: Any, batch_index: int) -> None:
        batch = self.played(batch)
        values = self.model(batch["observations"])["value"]
        self.value_error.update(values, batch["targets"])
        self.mean_return.update(batch[RETURNS])
        self.log("mean_return", self.mean_return, on_epoch=True)
        self.log("value_error", self.value_error, on_epoch=True)

    def _transitions(
        self, seeds: list[int], device: torch.device, explore: bool
    ) -> dict[str, Tensor]:
        """A play of the current network."""
        steps = self.data.steps if explore else self.data.longest
        environments = self.data.vector(len(seeds))
        with evaluating(self.model):
            played = play(self._policy(device), environments, seeds[0], steps, explore)
        environments.close()
        rows = transitions(played, self.discount)
        rows[RETURNS] = torch.from_numpy(played.returns()).float()
        return {name: values.to(device) for name, values in rows.items()}

    def _policy(self, device: torch.device) -> Policy:
        """What the current network says of observations."""

        def policy(observations: Array) -> tuple[Array, Array]:
            outputs = self.model(torch.from_numpy(observations).to(device).float())
            logs = F.log_softmax(outputs["policy"], 1)
            return logs.float().cpu().numpy(), outputs["value"].float().cpu().numpy()

        return policy


def _count(rollout: dict[str, Tensor]) -> int:
    """How many transitions there are."""
    return len(rollout["actions"])


def _part(rollout: dict[str, Tensor], count: int, seed: int) -> dict[str, Tensor]:
    """So many transitions of a rollout, drawn by the seed, with observations as numbers."""
    order = torch.randperm(_count(rollout), generator=torch.Generator().manual_seed(seed))
    drawn = order[:count].to(rollout["actions"].device)
    part = {name: rows if name == RETURNS else rows[drawn] for name, rows in rollout.items()}
    part["observations"] = part["observations"].float()
    return part
