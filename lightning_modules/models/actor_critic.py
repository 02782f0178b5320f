"""An actor and a critic in one network, for control."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_modules.models.heads import MLP


class ActorCritic(nn.Module):
    """Hidden layers as in `MLP`, shared by two heads.

    Input (N, features); outputs `policy` (N, actions), the logits of the actions, and `value` (N,).
    """

    def __init__(self, features: int, actions: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        shared = MLP(features, actions, width, depth)
        self.hidden = shared.hidden
        self.policy = shared.fc
        self.value = nn.Linear(self.policy.in_features, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(x)
        return {"policy": self.policy(hidden), "value": self.value(hidden).squeeze(-1)}
