"""Quantile regression: several quantiles of a target at once, which never cross."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp
from finetune.heads.scaling import Standardiser
from finetune.prediction import Prediction

MEDIAN = 0.5


@HEADS.register("quantile")
class QuantileHead(Head):
    r"""Quantiles by the pinball loss (Koenker & Bassett, 1978), in their order by construction.

    The median is free; every further quantile lies a softplus beyond its neighbour.
    """

    levels: Tensor

    class Config(MlpOptions):
        """Options of `QuantileHead`."""

        kind: Literal["quantile"] = "quantile"
        quantiles: tuple[float, ...] = Field(
            (0.05, 0.25, 0.5, 0.75, 0.95), description="in their order, with 0.5; the outermost are the interval"
        )

        @field_validator("quantiles")
        @classmethod
        def _ordered(cls, values: tuple[float, ...]) -> tuple[float, ...]:
            if MEDIAN not in values or len(values) < 3:
                raise ValueError("quantiles need the median 0.5 and one at least on either side")
            if not all(a < b for a, b in pairwise((0.0, *values, 1.0))):
                raise ValueError("quantiles must rise, between 0 and 1")
            if values[0] == MEDIAN or values[-1] == MEDIAN:
                raise ValueError("quantiles need one at least on either side of the median")
            return values

    task = "regression"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.layers = mlp(width, config, len(targets) * len(config.quantiles))
        self.scale = Standardiser(len(targets))
        self.middle = config.quantiles.index(MEDIAN)
        self.register_buffer("levels", torch.tensor(config.quantiles), persistent=False)

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Standardise by the mean and standard deviation of the known training targets."""
        self.scale.fit(targets)

    def forward(self, features: Tensor) -> Tensor:
        """Return the quantiles (B, T, Q) of the standardised targets, rising along the last axis."""
        free = self.layers(features).unflatten(-1, (-1, len(self.levels)))
        below, median, above = free.split([self.middle, 1, len(self.levels) - self.middle - 1], dim=-1)
        down = median - F.softplus(below).flip(-1).cumsum(-1).flip(-1)
        up = median + F.softplus(above).cumsum(-1)
        return torch.cat([down, median, up], dim=-1)

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the pinball loss, mean over the quantiles."""
        error = self.scale(targets)[known][:, None] - raw[known]
        return torch.maximum(self.levels * error, (self.levels - 1) * error).mean()

    def predict(self, raw: Tensor) -> Prediction:
        """Return the medians and the outermost quantiles in the targets' units."""
        lower, value, upper = (self.scale.inverse(raw[..., index]) for index in (0, self.middle, -1))
        return Prediction(value, lower=lower, upper=upper)
