"""A weighted sum of objectives, with fixed weights or weights learned from the losses' uncertainty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, cast

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema
from torch import Tensor, nn

from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Logs, Objective
from pretrain.objectives.pair_losses import plugin_options
from shards.plugins import Options
from shards.schema import Strict

ObjectiveOptions = Annotated[
    SerializeAsAny[Options],
    BeforeValidator(lambda value: plugin_options(OBJECTIVES, value)),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}], "description": "an objective: kind, or table"}),
]


class Term(Strict):
    """One objective of a sum.

    Attributes
    ----------
    weight : float
        Its factor, at all times; it also multiplies a learned weight's part.
    objective : dict
        An objective's table.
    """

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    objective: ObjectiveOptions


class Uncertainty(nn.Module):
    r"""A learned weight of a loss: the homoscedastic uncertainty of a softmax likelihood.

    .. math:: e^{-s} L + s / 2,\quad s = \log \sigma^2

    that is L / sigma^2 + log sigma (Kendall, Gal and Cipolla 2018, eq. 10, for a cross entropy). At the optimum
    ``e^s = 2 L``. For losses that are not negative: another has no optimum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(1))

    def forward(self, loss: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted loss, and its detached weight.

        Where nothing was compared, ``counts`` is 0, and a loss of 0 says nothing of its weight.
        """
        weight = (-self.log_variance[0]).exp()
        return weight * loss + 0.5 * self.log_variance[0] * counts, weight.detach()


@OBJECTIVES.register("weighted_sum")
class WeightedSum(Objective):
    """L = sum over the terms k of w_k L_k; the embeddings are those that any term reads.

    Logged are ``loss/TERM`` and what the term logs after ``TERM/``; TERM is the kind of its objective, numbered
    where a kind repeats (``anchored-1``, ``anchored-2``).
    """

    class Config(Options):
        """Options of `WeightedSum`.

        Attributes
        ----------
        terms : tuple of Term
            At least one.
        weights : str
            ``fixed``: those of the terms; ``uncertainty``: each is learned besides, see `Uncertainty`.
        """

        kind: Literal["weighted_sum"] = "weighted_sum"
        terms: tuple[Term, ...] = Field(min_length=1)
        weights: Literal["fixed", "uncertainty"] = "fixed"

    def __init__(
        self, config: Config, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        options = [term.objective for term in config.terms]
        terms = [OBJECTIVES.get(each.kind)(each, modalities, fusions) for each in options]
        self.terms, self.read = nn.ModuleList(terms), [term.names for term in terms]
        self.labels = _labels([each.kind for each in options])
        learned = config.weights == "uncertainty"
        self.uncertainties = nn.ModuleList(Uncertainty() for _ in options) if learned else None
        self.needs_groups = any(term.needs_groups for term in terms)

    @property
    def names(self) -> tuple[str, ...]:
        """Every embedding that a term reads, once."""
        return tuple(dict.fromkeys(name for names in self.read for name in names))

    def sized(self, dim: int) -> None:
        """See `Objective.sized`."""
        for term in self.terms:
            cast(Objective, term).sized(dim)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """Return this rank's share of the sum, and each term's share and values to log."""
        shares, logs = [], {}
        for i, label in enumerate(self.labels):
            share, found = self.terms[i](batch)
            logs[f"loss/{label}"] = share.detach()
            logs |= {f"{label}/{name}": value for name, value in found.items()}
            if self.uncertainties is not None:
                share, logs[f"weight/{label}"] = self.uncertainties[i](share, _compares(self.read[i], batch))
            shares.append(self.config.terms[i].weight * share)
        return torch.stack(shares).sum(), logs


def _labels(kinds: Sequence[str]) -> list[str]:
    total, seen = Counter(kinds), Counter[str]()
    labels = []
    for kind in kinds:
        seen[kind] += 1
        labels.append(kind if total[kind] == 1 else f"{kind}-{seen[kind]}")
    return labels


def _compares(names: Sequence[str], batch: GlobalBatch) -> Tensor:
    """Say, as 0 or 1, whether the GLOBAL batch has two rows with two of the embeddings: what any loss compares."""
    complete = torch.stack([batch.present[name] for name in names]).sum(dim=0) >= 2
    return (complete.sum() >= 2).float()
