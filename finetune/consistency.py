"""Consistency regularisation: two variations of a material must be predicted alike, its label known or not."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from shards.schema import Strict


class Consistency(Strict):
    r"""A term :math:`\lambda(t) \, d(f(x'), \mathrm{stopgrad} f(x''))` of two variations of the same rows.

    d is the mean squared difference of the raw outputs in regression, the Kullback-Leibler divergence of the class
    probabilities otherwise; :math:`\lambda(t) = \lambda e^{-5 (1 - t / T)^2}` for t < T (mean teacher, Tarvainen &
    Valpola, arXiv 1703.01780).

    Attributes
    ----------
    weight : float
        :math:`\lambda`.
    ramp_epochs : int
        T; 0: at full strength from the start.
    unlabelled : bool
        Training samples without a known target join.
    """

    weight: float = Field(1.0, ge=0)
    ramp_epochs: int = Field(10, ge=0)
    unlabelled: bool = False

    def strength(self, epoch: int) -> float:
        """Return the factor of an epoch (from 0)."""
        if epoch >= self.ramp_epochs:
            return self.weight
        return self.weight * math.exp(-5 * (1 - epoch / self.ramp_epochs) ** 2)

    def distance(self, task: str, raw: Tensor, other: Tensor) -> Tensor:
        """Return d, 0-dim, of raw outputs (B, ...); the second has no gradient."""
        other = other.detach()
        if not len(raw):
            return raw.sum() * 0.0
        if task == "regression":
            return F.mse_loss(raw, other)
        if task == "classification":
            # of two classes, a target a column
            raw, other = (
                torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, -2) for logits in (raw, other)
            )
        return F.kl_div(raw.log_softmax(-1), other.log_softmax(-1), reduction="batchmean", log_target=True)
