"""Regression that looks up how similar training materials came out."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.heads.base import HEADS, MlpOptions, mlp
from finetune.heads.memory import RememberingHead, spread
from finetune.heads.standardised import Loss, StandardisedHead

# standardised features nearer than this (root mean square) are those of one row, up to rounding
SAME = 1e-4


@HEADS.register("retrieval_augmented")
class RetrievalAugmentedHead(RememberingHead, StandardisedHead):
    """An MLP of a row's features beside an attention over its k nearest TRAINING rows and their labels.

    y = MLP([z ; attention(z; (z_j, y_j), j = 1 .. k)]), neighbours by Euclidean distance of the standardised features.
    In training mode the row's own entry must not be found, or the head would copy labels: the nearest entry, all that
    lie as near (copies of the row) and all of its group are left out. In use, nothing of a material's group is there.
    """

    class Config(MlpOptions):
        """Options of `RetrievalAugmentedHead`."""

        kind: Literal["retrieval_augmented"] = "retrieval_augmented"
        neighbours: int = Field(8, gt=0, description="k")
        dim: int = Field(32, gt=0, description="width of query, key and value")
        loss: Loss = "huber"

    kept = ("memory", "labels")
    memory: Tensor
    labels: Tensor
    shift: Tensor
    stretch: Tensor

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.query, self.key = (nn.Linear(width, config.dim, bias=False) for _ in range(2))
        # of a neighbour: how it differs, its labels, and which of them are known
        self.value = nn.Linear(width + 2 * len(targets), config.dim)
        self.layers = mlp(width + config.dim, config, len(targets))
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("stretch", torch.ones(width))
        self.register_buffer("memory", torch.zeros(0, width))
        self.register_buffer("labels", torch.zeros(0, len(targets)))

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Standardise, and keep the features and labels of the training rows of which a label is known."""
        targets, features = self.known_rows(targets, features)
        self.scale.fit(targets)
        self.shift, self.stretch = spread(features)
        self.memory = self._standardised(features)
        self.labels = self.scale(targets)

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised predictions (B, T)."""
        rows = self._standardised(features)
        neighbours, real = self.neighbours(features)
        labels = self.labels[neighbours]
        known = ~labels.isnan()
        gaps = self.memory[neighbours] - rows[:, None]
        values = self.value(torch.cat([gaps, labels.nan_to_num(), known.to(rows.dtype)], dim=-1))
        found = F.scaled_dot_product_attention(
            self.query(rows)[:, None], self.key(gaps), values, attn_mask=real[:, None]
        )
        return self.layers(torch.cat([rows, found[:, 0] * real.any(dim=1, keepdim=True)], dim=1))

    @torch.no_grad()
    def neighbours(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers (B, k) of the nearest training rows, and which of them may be looked at (B, k)."""
        self.check_fitted(self.memory)
        rows = self._standardised(features)
        distances = torch.cdist(rows, self.memory, compute_mode="donot_use_mm_for_euclid_dist")
        if self.training:
            nearest, own = distances.min(dim=1, keepdim=True)
            hidden = distances <= nearest + SAME * rows.shape[1] ** 0.5
            if len(self.groups):
                hidden = hidden | (self.groups == self.groups[own])
            distances = distances.masked_fill(hidden, float("inf"))
        nearest, index = distances.topk(min(self.config.neighbours, len(self.memory)), dim=1, largest=False)
        return index, nearest.isfinite()

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.shift) / self.stretch
