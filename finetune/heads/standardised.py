"""What heads share whose raw outputs are the standardised targets themselves."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import Head
from finetune.heads.scaling import Standardiser
from finetune.prediction import Prediction

Loss = Literal["mse", "l1", "huber"]


class StandardisedHead(Head):
    """Base of heads with raw outputs (B, T) in standard deviations from the mean, and an option ``loss``."""

    task = "regression"

    def __init__(self, config: Any, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.scale = Standardiser(len(targets))

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Standardise by the mean and standard deviation of the known training targets."""
        self.scale.fit(targets)

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the configured loss of the standardised targets."""
        function = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[self.config.loss]
        return function(raw[known], self.scale(targets)[known])

    def predict(self, raw: Tensor) -> Prediction:
        """Return the predictions in the targets' units."""
        return Prediction(self.scale.inverse(raw))
