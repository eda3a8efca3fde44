"""The temperature of a softmax or sigmoid over similarities: fixed, or learned on a log scale and clamped."""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from shards.schema import Strict


class TemperatureConfig(Strict):
    """Temperature; learned on a log scale, or fixed.

    Attributes
    ----------
    learn : bool
        Learn it, or keep ``init``.
    init : float
        Value at the start.
    min : float
        A learned temperature is clamped to at least this (CLIP: 0.01, a logit scale of 100).
    per_pair : bool
        Learn one for every pair of embeddings (ImageBind), in place of one for all.
    """

    learn: bool = True
    init: float = Field(0.1, gt=0)
    min: float = Field(0.01, gt=0)
    per_pair: bool = False

    @model_validator(mode="after")
    def _learned_per_pair(self) -> TemperatureConfig:
        if self.per_pair and not self.learn:
            raise ValueError("'per_pair' is for a learned temperature: a fixed one is the same for all pairs")
        return self


class Temperature(nn.Module):
    """Logit scales ``1 / temperature``, (count,): DeepSpeed cannot hold a 0-dim parameter."""

    def __init__(self, config: TemperatureConfig, count: int = 1) -> None:
        super().__init__()
        self.limit = math.log(1 / config.min)
        log_scale = torch.full((count,), math.log(1 / config.init))
        if config.learn:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self) -> Tensor:
        """Return the logit scales, (count,)."""
        log_scale = self.log_scale.float()
        # the gradient passes the clamp: a temperature at its limit could never rise again otherwise
        return (log_scale + (log_scale.clamp(max=self.limit) - log_scale).detach()).exp()
