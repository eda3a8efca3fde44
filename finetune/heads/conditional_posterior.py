"""Parameters of which the observations tell only so much: a posterior instead of a point."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp
from finetune.heads.scaling import Standardiser
from finetune.prediction import Prediction

# standard deviations of standardised targets do not fall below this: the likelihood of a repeated value is unbounded
LEAST = 1e-3


@HEADS.register("conditional_posterior")
class ConditionalPosteriorHead(Head):
    r"""A mixture of K Gaussians over the T targets together, with full covariances :math:`L L^\top`.

    Trained by the negative log-likelihood (mixture density network, Bishop 1994). Of a row of which some targets are
    unknown, the likelihood is that of the known ones, the others integrated out.
    """

    class Config(MlpOptions):
        """Options of `ConditionalPosteriorHead`."""

        kind: Literal["conditional_posterior"] = "conditional_posterior"
        components: int = Field(4, gt=0, description="K")

    task = "regression"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        self.size = len(targets)
        self.corner = self.size * (self.size + 1) // 2
        self.layers = mlp(width, config, config.components * (1 + self.size + self.corner))
        self.scale = Standardiser(self.size)

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Standardise by the mean and standard deviation of the known training targets."""
        self.scale.fit(targets)

    def forward(self, features: Tensor) -> Tensor:
        """Return weight, mean and Cholesky factor of every component, (B, K, 1 + T + T (T + 1) / 2)."""
        return self.layers(features).unflatten(-1, (self.config.components, -1))

    def posterior(self, raw: Tensor) -> MixtureSameFamily:
        """Return the distribution over the standardised targets of B rows; `sample` gives it in units."""
        logits, means, factors = self._parts(raw)
        # not validated: a batch may be empty, and it is the training loop that finds NaN
        components = MultivariateNormal(means, scale_tril=factors, validate_args=False)
        return MixtureSameFamily(Categorical(logits=logits, validate_args=False), components, validate_args=False)

    @torch.no_grad()
    def sample(self, raw: Tensor, count: int) -> Tensor:
        """Return draws (count, B, T) from the posterior, in the targets' units."""
        return self.scale.inverse(self.posterior(raw).sample((count,)))

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the negative log-likelihood, a known entry."""
        here = known.any(dim=1)
        logits, means, factors = self._parts(raw[here])
        known = known[here]
        both = (known[:, :, None] & known[:, None])[:, None]
        # an unknown entry becomes a standard normal of its own, at its mean, whose density is then taken off
        covariances = (factors @ factors.mT).where(both, torch.eye(self.size).to(factors))
        errors = (self.scale(targets)[here][:, None] - means) * known[:, None]
        normal = MultivariateNormal(torch.zeros_like(errors), covariance_matrix=covariances, validate_args=False)
        likelihood = (logits.log_softmax(-1) + normal.log_prob(errors)).logsumexp(-1)
        constant = 0.5 * torch.tensor(2 * torch.pi).log()
        return -(likelihood + constant * (~known).sum(dim=1)).sum() / known.sum()

    def predict(self, raw: Tensor) -> Prediction:
        """Return mean and standard deviation of the posterior of each target, in its unit."""
        posterior = self.posterior(raw)
        return Prediction(self.scale.inverse(posterior.mean), std=posterior.variance.sqrt() * self.scale.std)

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights (B, K), means (B, K, T) and Cholesky factors (B, K, T, T)."""
        weights, means, corner = raw.split([1, self.size, self.corner], dim=-1)
        factors = raw.new_zeros(*raw.shape[:-1], self.size, self.size)
        row, column = torch.tril_indices(self.size, self.size)
        factors[..., row, column] = corner.where(
            row.to(raw.device) != column.to(raw.device), F.softplus(corner) + LEAST
        )
        return weights.squeeze(-1), means, factors
