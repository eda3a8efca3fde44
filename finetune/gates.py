"""Gates: how much of which expert, by a free vector or by a row's own features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def top_k_softmax(logits: Tensor, k: int) -> Tensor:
    """Return the softmax over the k greatest of (..., m) logits, exactly 0 elsewhere.

    Of one logit the softmax is 1 whatever it is: for k = 1 no gradient reaches the logits.
    """
    kept = logits.topk(k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, kept.indices, kept.values.softmax(dim=-1))


class StaticGate(nn.Module):
    """A free vector of m logits a head, the same for every row (Chang et al., npj Comput. Mater. 8, 242 (2022)).

    The published gate G(theta, k) does not see its input: theta starts at 1. What it adds to the loss is
    ||S^T S - I||^2 of the scores S (m, heads). For one head that is (sum p^2 - 1)^2, least for a gate that chose one
    expert: it sharpens, and does not keep the gate from collapsing. Several heads it drives to different experts.

    Parameters
    ----------
    experts, k, heads : int
        m; how many are not zero; independent gates.
    weight : float
        Of the regulariser.
    """

    def __init__(self, experts: int, *, k: int, heads: int = 1, weight: float = 0.01) -> None:
        super().__init__()
        self.k, self.weight = k, weight
        self.logits = nn.Parameter(torch.ones(heads, experts))

    def scores(self) -> Tensor:
        """Return (heads, m) scores, each row with exactly k that are not zero."""
        return top_k_softmax(self.logits, self.k)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the scores and what they add to the loss."""
        scores = self.scores()
        identity = torch.eye(len(scores), device=scores.device, dtype=scores.dtype)
        return scores, self.weight * (scores @ scores.T - identity).square().sum()


class InputGate(nn.Module):
    """A linear map of a row's features to m logits, softmax over the k greatest."""

    def __init__(self, width: int, experts: int, *, k: int) -> None:
        super().__init__()
        self.k = k
        self.linear = nn.Linear(width, experts)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B, m) for features (B, R), and nothing that is added to the loss."""
        return top_k_softmax(self.linear(features), self.k), features.new_zeros(())


class NoisyTopKGate(nn.Module):
    """Noisy top-k gating (Shazeer et al., arXiv:1701.06538, equations 3 to 5, 6 to 11).

    In training, normal noise of a learned, row-dependent scale is added to the logits before the k greatest are taken.
    The loss gets ``weight`` times CV^2 of the experts' importance (sum of scores over the rows) plus CV^2 of their load
    (expected number of rows): it balances the experts, where the regulariser of `StaticGate` sharpens. Both are of the
    rows of one rank.
    """

    def __init__(self, width: int, experts: int, *, k: int, weight: float = 0.01) -> None:
        super().__init__()
        self.k, self.weight, self.experts = k, weight, experts
        self.clean = nn.Linear(width, experts, bias=False)
        self.noise = nn.Linear(width, experts, bias=False)
        # all experts alike at the start, as in appendix A
        nn.init.zeros_(self.clean.weight)
        nn.init.zeros_(self.noise.weight)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B, m) for features (B, R), and what they add to the loss; without noise in evaluation."""
        clean = self.clean(features)
        if not self.training:
            return top_k_softmax(clean, self.k), features.new_zeros(())
        scale = F.softplus(self.noise(features)) + 1e-2
        noisy = clean + torch.randn_like(clean) * scale
        scores = top_k_softmax(noisy, self.k)
        balance = squared_variation(scores.sum(0))
        if self.k < self.experts:
            balance = balance + squared_variation(self.load(clean, noisy, scale))
        return scores, self.weight * balance

    def load(self, clean: Tensor, noisy: Tensor, scale: Tensor) -> Tensor:
        """Return (m,): the expected rows of each expert, if its own noise alone were drawn again."""
        greatest = noisy.topk(self.k + 1, dim=1).values
        # what an expert must exceed: the k-th greatest of the others
        inside = noisy >= greatest[:, self.k - 1 : self.k]
        bar = torch.where(inside, greatest[:, self.k :], greatest[:, self.k - 1 : self.k])
        chance = 0.5 * (1 + torch.erf((clean - bar) / (scale * math.sqrt(2))))
        return chance.sum(0)


def squared_variation(values: Tensor) -> Tensor:
    """Return the squared coefficient of variation of (m,) values, 0 for a single one."""
    if len(values) < 2:
        return values.new_zeros(())
    return values.var() / (values.mean().square() + 1e-10)
