"""Binary classification."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp


@HEADS.register("classification")
class ClassificationHead(Head):
    """An MLP with one logit; targets are 0 or 1."""

    class Config(MlpOptions):
        """Options of `ClassificationHead`."""

        kind: Literal["classification"] = "classification"

    task = "classification"

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.layers = mlp(width, config)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logit (B,)."""
        return self.layers(features).squeeze(1)

    def compare(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy."""
        return F.binary_cross_entropy_with_logits(raw, targets)

    def predict(self, raw: Tensor) -> Tensor:
        """Return the probability of class 1."""
        return raw.sigmoid()
