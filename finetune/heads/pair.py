"""Heads of pairs (two drugs, two materials), of which the order means nothing."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp
from finetune.heads.memory import spread
from finetune.heads.standardised import Loss, StandardisedHead
from finetune.prediction import Prediction
from shards.errors import DataError


class PairOptions(MlpOptions):
    """How the two rows of features are joined; the hidden layers are those of ``sum`` and ``both_orders``.

    Attributes
    ----------
    mode : str
        ``sum``: an MLP of z_a + z_b. ``bilinear``: z_a^T W_k z_b for every outcome k, W_k symmetric, without bias, as
        Madrigal (arXiv 2503.02781) scores drug pairs. ``both_orders``: the mean of an MLP of [z_a, z_b] and [z_b, z_a].
    """

    mode: Literal["sum", "bilinear", "both_orders"] = "bilinear"


class Symmetric(nn.Module):
    """Scores (B, T) of pairs of features (B, 2, F), the same for (a, b) and (b, a)."""

    shift: Tensor
    stretch: Tensor

    def __init__(self, config: PairOptions, width: int, outcomes: int) -> None:
        super().__init__()
        self.mode = config.mode
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("stretch", torch.ones(width))
        if config.mode == "bilinear":
            # so that scores of standardised features have a variance of one
            self.triangle = nn.Parameter(torch.randn(outcomes, width, width) / width)
        else:
            self.layers = mlp(width if config.mode == "sum" else 2 * width, config, outcomes)

    def fit(self, pairs: Tensor | None) -> None:
        """Standardise by the partners of the training pairs (N, 2, F), where their features do not change."""
        if pairs is not None and len(pairs):
            self.shift, self.stretch = spread(pairs.detach().flatten(0, 1))

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the scores."""
        if pairs.dim() != 3 or pairs.shape[1] != 2:
            raise DataError(
                f"a pair head reads features (B, 2, F), these are {tuple(pairs.shape)}",
                do="give the features of both partners",
            )
        first, second = ((pairs - self.shift) / self.stretch).unbind(1)
        if self.mode == "sum":
            return self.layers(first + second)
        if self.mode == "both_orders":
            return (self.layers(torch.cat([first, second], -1)) + self.layers(torch.cat([second, first], -1))) / 2
        # the upper triangle, mirrored
        matrix = self.triangle.triu() + self.triangle.triu(1).mT
        return torch.einsum("bi,kij,bj->bk", first, matrix, second)


@HEADS.register("pair")
class PairRegression(StandardisedHead):
    """A number, or several, of a pair: an affinity, a synergy score."""

    class Config(PairOptions):
        """Options of `PairRegression`; ``loss`` is taken of the standardised targets."""

        kind: Literal["pair"] = "pair"
        loss: Loss = "huber"

    partners = 2

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.scores = Symmetric(config, width, len(targets))

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Standardise targets, and features (N, 2, F)."""
        super().fit(targets)
        self.scores.fit(features)

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised predictions (B, T) of pairs (B, 2, F)."""
        return self.scores(features)


@HEADS.register("pair_classification")
class PairClassification(Head):
    """Outcomes of a pair, each 0 or 1: the side effects of two drugs."""

    class Config(PairOptions):
        """Options of `PairClassification`."""

        kind: Literal["pair_classification"] = "pair_classification"

    task = "classification"
    partners = 2

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.scores = Symmetric(config, width, len(targets))

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Standardise features (N, 2, F)."""
        self.scores.fit(features)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, T) of pairs (B, 2, F)."""
        return self.scores(features)

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the cross entropy."""
        return F.binary_cross_entropy_with_logits(raw[known], targets[known])

    def predict(self, raw: Tensor) -> Prediction:
        """Return the probabilities of class 1."""
        return Prediction(raw.sigmoid())
