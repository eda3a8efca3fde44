"""Regression of one number."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp


@HEADS.register("regression")
class RegressionHead(Head):
    """An MLP on the standardised target."""

    class Config(MlpOptions):
        """Options of `RegressionHead`; ``loss`` is taken of the standardised target."""

        kind: Literal["regression"] = "regression"
        loss: Literal["mse", "l1", "huber"] = "huber"

    task = "regression"
    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.layers = mlp(width, config)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def fit(self, targets: Tensor) -> None:
        """Standardise by the mean and standard deviation of the training targets."""
        self.mean.fill_(targets.mean())
        self.std.fill_(targets.std().clamp(min=1e-8))

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised prediction (B,)."""
        return self.layers(features).squeeze(1)

    def compare(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Return the configured loss of the standardised target."""
        function = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[self.config.loss]
        return function(raw, (targets - self.mean) / self.std)

    def predict(self, raw: Tensor) -> Tensor:
        """Return the prediction in the target's unit."""
        return raw * self.std + self.mean
