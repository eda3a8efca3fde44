"""Regression that says how sure it is: a Gaussian whose variance depends on the material."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp
from finetune.heads.scaling import Standardiser
from finetune.prediction import Prediction

LOG_VARIANCE = 10.0


@HEADS.register("gaussian")
class GaussianHead(Head):
    r"""Mean and log variance of every standardised target, by the negative log-likelihood (Nix & Weigend, 1994).

    With ``beta`` > 0 each term is weighed by :math:`\mathrm{stopgrad}(\sigma^{2\beta})` (Seitzer et al., ICLR 2022,
    arXiv 2203.09168, eq. 8), so that rows that are poorly fitted do not fade from the fit of the mean; ``beta`` = 1
    fits the mean as the squared error does.
    """

    class Config(MlpOptions):
        """Options of `GaussianHead`."""

        kind: Literal["gaussian"] = "gaussian"
        beta: float = Field(0.5, ge=0, le=1, description="0: the plain likelihood; 1: the mean as by the squared error")

    task = "regression"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.layers = mlp(width, config, 2 * len(targets))
        self.scale = Standardiser(len(targets))

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Standardise by the mean and standard deviation of the known training targets."""
        self.scale.fit(targets)

    def forward(self, features: Tensor) -> Tensor:
        """Return mean and log variance (B, T, 2) of the standardised targets."""
        mean, log_variance = self.layers(features).unflatten(-1, (-1, 2)).unbind(-1)
        # a soft bound: e^10 and e^-10 are out of reach of standardised targets, and the gradient never dies at once
        return torch.stack([mean, LOG_VARIANCE * torch.tanh(log_variance / LOG_VARIANCE)], dim=-1)

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the (weighed) negative log-likelihood of the standardised targets."""
        mean, log_variance = raw[known].unbind(-1)
        variance = log_variance.exp()
        loss = F.gaussian_nll_loss(mean, self.scale(targets)[known], variance, reduction="none", eps=1e-12)
        return (loss * variance.detach() ** self.config.beta).mean()

    def predict(self, raw: Tensor) -> Prediction:
        """Return means and standard deviations in the targets' units."""
        mean, log_variance = raw.unbind(-1)
        return Prediction(self.scale.inverse(mean), std=(log_variance / 2).exp() * self.scale.std)
