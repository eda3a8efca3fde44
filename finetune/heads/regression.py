"""Regression of one number or several, of which any may be unknown."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from finetune.heads.base import HEADS, MlpOptions, mlp
from finetune.heads.standardised import Loss, StandardisedHead


@HEADS.register("regression")
class RegressionHead(StandardisedHead):
    """An MLP on the standardised targets; several targets share its hidden layers."""

    class Config(MlpOptions):
        """Options of `RegressionHead`; ``loss`` is taken of the standardised targets."""

        kind: Literal["regression"] = "regression"
        loss: Loss = "huber"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.layers = mlp(width, config, len(targets))

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised predictions (B, T)."""
        return self.layers(features)
