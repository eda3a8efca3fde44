"""Regression of one number or several, of which any may be unknown."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp
from finetune.heads.scaling import Standardiser
from finetune.prediction import Prediction


@HEADS.register("regression")
class RegressionHead(Head):
    """An MLP on the standardised targets; several targets share its hidden layers."""

    class Config(MlpOptions):
        """Options of `RegressionHead`; ``loss`` is taken of the standardised targets."""

        kind: Literal["regression"] = "regression"
        loss: Literal["mse", "l1", "huber"] = "huber"

    task = "regression"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.layers = mlp(width, config, len(targets))
        self.scale = Standardiser(len(targets))

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Standardise by the mean and standard deviation of the known training targets."""
        self.scale.fit(targets)

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised predictions (B, T)."""
        return self.layers(features)

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the configured loss of the standardised targets."""
        function = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[self.config.loss]
        return function(raw[known], self.scale(targets)[known])

    def predict(self, raw: Tensor) -> Prediction:
        """Return the predictions in the targets' units."""
        return Prediction(self.scale.inverse(raw))
