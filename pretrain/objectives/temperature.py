"""The temperature of a softmax or sigmoid over similarities: fixed, or learned on a log scale with a limit."""

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
        A learned temperature is kept at least at this (CLIP: 0.01, a logit scale of 100).
    per_pair : bool
        Learn one for every pair of embeddings (ImageBind), in place of one for all.
    """

    learn: bool = True
    init: float = Field(0.1, gt=0)
    min: float = Field(0.01, gt=0)
    per_pair: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> TemperatureConfig:
        if self.per_pair and not self.learn:
            raise ValueError("'per_pair' is for a learned temperature: a fixed one is the same for all pairs")
        if self.learn and self.init < self.min:
            raise ValueError(
                f"'init' {self.init:g} lies below 'min' {self.min:g}, which a learned temperature keeps to"
            )
        return self


class Temperature(nn.Module):
    """Logit scales ``1 / temperature``, (count,): DeepSpeed cannot hold a 0-dim parameter."""

    def __init__(self, config: TemperatureConfig, count: int = 1) -> None:
        super().__init__()
        self.limit = math.log(1 / config.min) if config.learn else math.inf
        log_scale = torch.full((count,), math.log(1 / config.init))
        if config.learn:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self) -> Tensor:
        """Return the logit scales, (count,)."""
        log_scale = self.log_scale.float()
        # mirrored at the limit, not clamped: a clamp has no gradient to come back by, or, where it is let through, what
        # is learned drifts on beyond the limit for as long as the loss pulls, and needs as long to come back
        return torch.where(log_scale > self.limit, 2 * self.limit - log_scale, log_scale).exp()
