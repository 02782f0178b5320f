"""Networks for tables and for several tasks at once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lightning_modules.models.small import SmallResNet


class MLP(nn.Module):
    """`depth` hidden layers of `width` features with ReLU, then a linear layer.

    Input (N, features), output (N, outputs).
    """

    def __init__(self, features: int, outputs: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = features
        for _ in range(depth):
            layers.append(nn.Linear(last, width))
            layers.append(nn.ReLU())
            last = width
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(last, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(x))


class MultiHead(nn.Module):
    """A `SmallResNet` whose features are shared by linear `heads`, name -> number of outputs.

    Input (N, in_channels, H, W), output a dict: name -> (N, outputs).
    """

    def __init__(
        self, heads: Mapping[str, int], in_channels: int = 1, width: int = 16, blocks: int = 1
    ) -> None:
        super().__init__()
        self.backbone = SmallResNet(1, in_channels, width, blocks)
        features = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(features, outputs) for name, outputs in heads.items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        return {name: head(features) for name, head in self.heads.items()}
