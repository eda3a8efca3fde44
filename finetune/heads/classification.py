"""Binary classification of one label or several."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp
from finetune.prediction import Prediction


@HEADS.register("classification")
class ClassificationHead(Head):
    """An MLP with a logit for every target; targets are 0 or 1."""

    class Config(MlpOptions):
        """Options of `ClassificationHead`."""

        kind: Literal["classification"] = "classification"

    task = "classification"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.layers = mlp(width, config, len(targets))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, T)."""
        return self.layers(features)

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the cross entropy."""
        return F.binary_cross_entropy_with_logits(raw[known], targets[known])

    def predict(self, raw: Tensor) -> Prediction:
        """Return the probabilities of class 1."""
        return Prediction(raw.sigmoid())
