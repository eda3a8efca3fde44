"""One label of several classes."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp
from finetune.prediction import Prediction
from shards.errors import ConfigError, DataError


@HEADS.register("multiclass")
class MulticlassHead(Head):
    """An MLP with a logit for each of C classes; the target holds class numbers 0 .. C - 1."""

    weights: Tensor

    class Config(MlpOptions):
        """Options of `MulticlassHead`."""

        kind: Literal["multiclass"] = "multiclass"
        classes: int = Field(ge=2, description="C")
        weights: Literal["balanced"] | tuple[float, ...] | None = Field(
            None, description="of the classes in the loss; 'balanced': N / (C N_c), from the training targets"
        )

        @model_validator(mode="after")
        def _one_weight_a_class(self) -> MulticlassHead.Config:
            if isinstance(self.weights, tuple):
                if len(self.weights) != self.classes:
                    raise ValueError(f"'weights' has {len(self.weights)} numbers for {self.classes} classes")
                if min(self.weights) <= 0:
                    raise ValueError("'weights' must be positive")
            return self

    task = "multiclass"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        if len(targets) != 1:
            raise ConfigError(
                "a multiclass head has one target", why=f"there are {len(targets)}: {', '.join(targets)}", where="head"
            )
        self.layers = mlp(width, config, config.classes)
        given = config.weights if isinstance(config.weights, tuple) else (1.0,) * config.classes
        self.register_buffer("weights", torch.tensor(given))

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Check the class numbers; count them where the classes are to be balanced."""
        known = targets[~targets.isnan()]
        odd = (known != known.round()) | (known < 0) | (known >= self.config.classes)
        if odd.any():
            raise DataError(
                f"'{self.targets[0]}' holds {known[odd][0]:g}, which is no class",
                why=f"there are {self.config.classes} classes, numbered from 0",
                do="set head.classes, or number the classes 0, 1, ...",
            )
        if self.config.weights == "balanced":
            counts = known.long().bincount(minlength=self.config.classes)
            # a class without a row weighs nothing either way
            self.weights.copy_(len(known) / (self.config.classes * counts.clamp(min=1)))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        return self.layers(features)

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the (weighed) cross entropy."""
        here = known[:, 0]
        return F.cross_entropy(raw[here], targets[here, 0].long(), self.weights)

    def predict(self, raw: Tensor) -> Prediction:
        """Return the number of the most likely class, and the probability of each."""
        return Prediction(raw.argmax(dim=1, keepdim=True).to(raw.dtype), probabilities=raw.softmax(dim=1))
