"""Spectrum-valued properties: a density of states, an absorption spectrum, one target an energy."""

from __future__ import annotations

from math import nan
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp
from finetune.metrics.spectra import paired_scores, trapezoid_weights
from finetune.prediction import Prediction
from shards.errors import ConfigError, DataError

TINY = 1e-8


@HEADS.register("spectrum")
class SpectrumHead(Head):
    """A density over T energies of equal spacing, never negative; targets are its values, in the order of energy.

    Parameters
    ----------
    config : Config
        Loss, basis and integral.
    width : int
        Number of features F.
    targets : tuple of str
        One a bin.
    """

    unit: Tensor
    centre: Tensor
    basis: Tensor

    class Config(MlpOptions):
        """Options of `SpectrumHead`."""

        kind: Literal["spectrum"] = "spectrum"
        loss: Literal["mse", "cdf", "kl"] = Field(
            "mse",
            description="mse: bin by bin; cdf: L1 distance of the cumulatives (1-Wasserstein for equal integrals), in "
            "bins; kl: generalised Kullback-Leibler divergence, which holds for unequal integrals too",
        )
        rank: int = Field(0, ge=0, description="principal components of the training spectra; 0: every bin is free")
        integral: float | None = Field(
            None, gt=0, description="what every prediction sums to, times the spacing (number of states)"
        )
        spacing: float = Field(1.0, gt=0, description="of the energies, with the unit of 'integral'")
        start: float = Field(0.0, description="energy of the first bin")
        window: tuple[float, float] | None = Field(
            None, description="energies between which 'integral_score' compares spectra; all by default"
        )

    task = "regression"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        if config.rank > len(targets):
            raise ConfigError(
                f"rank = {config.rank} of a spectrum of {len(targets)} energies", where="head", do="lower head.rank"
            )
        self.layers = mlp(width, config, config.rank or len(targets))
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("centre", torch.zeros(len(targets)))
        self.register_buffer("basis", torch.zeros(config.rank, len(targets)))

    @classmethod
    def further_metrics(cls, config: Config, predictions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return ``integral_score``, the mean of `finetune.metrics.spectra.paired_scores`; 0: the same spectra."""
        energies = config.start + config.spacing * np.arange(targets.shape[1])
        weights = trapezoid_weights(energies, config.window, where="head.window")
        known = ~targets.isnan().any(dim=1)
        wanted, found = (spectra[known].double().cpu().numpy() for spectra in (targets, predictions))
        scores = paired_scores(wanted, found, weights)
        return {"integral_score": float(scores.mean()) if len(scores) else nan}

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Take the mean height as the unit, and fit the basis to the known training spectra."""
        known = targets[~targets.isnan().any(dim=1)].double()
        if (known < 0).any():
            raise DataError(
                "a spectrum has negative values", why="the head predicts a density", do="use the head 'regression'"
            )
        if not len(known) or known.mean() == 0:
            return
        self.unit.copy_(known.mean())
        if not self.config.rank:
            return
        scaled = known / known.mean()
        self.centre.copy_(scaled.mean(dim=0))
        values, vectors = torch.linalg.eigh(torch.atleast_2d((scaled - scaled.mean(dim=0)).T.cov(correction=0)))
        # coefficients of a variance of one: an untrained layer gives these
        components = (vectors * values.clamp_min(0).sqrt()).flip(1).T
        self.basis.copy_(components[: self.config.rank])

    def forward(self, features: Tensor) -> Tensor:
        """Return the density (B, T) in units of the mean height of the training spectra."""
        free = self.layers(features)
        # with a basis, a bin below zero is left at zero: its coefficients have a gradient from the others
        density = F.relu(self.centre + free @ self.basis) if self.config.rank else F.softplus(free)
        if self.config.integral is None:
            return density
        total = density.sum(dim=1, keepdim=True).clamp_min(TINY) * self.config.spacing
        return density * (self.config.integral / self.unit) / total

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the loss over the rows of which every energy is known: a cumulative has no gaps."""
        whole = known.all(dim=1)
        if not whole.any():
            return raw.sum() * 0.0
        predicted, truth = raw[whole], targets[whole] / self.unit
        if self.config.loss == "mse":
            return F.mse_loss(predicted, truth)
        if self.config.loss == "cdf":
            # the mean integral, in bins, is T: a mean spectrum that moves by a bin costs one
            return (predicted - truth).cumsum(dim=1).abs().mean()
        divergence = torch.xlogy(truth, truth) - torch.xlogy(truth, predicted.clamp_min(TINY)) - truth + predicted
        return divergence.mean()

    def predict(self, raw: Tensor) -> Prediction:
        """Return the density (B, T) in the targets' unit."""
        return Prediction(raw * self.unit)
