"""Linear regression by gradient descent: what a frozen embedding holds that needs no further layer to be read."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from finetune.heads.base import HEADS
from finetune.heads.standardised import Loss, StandardisedHead
from shards.plugins import Options


@HEADS.register("linear")
class LinearHead(StandardisedHead):
    """One linear map to the standardised targets: no norm, no hidden layer, no dropout."""

    class Config(Options):
        """Options of `LinearHead`; ``loss`` is taken of the standardised targets."""

        kind: Literal["linear"] = "linear"
        loss: Loss = "mse"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.layers = nn.Linear(width, len(targets))

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised predictions (B, T)."""
        return self.layers(features)
