"""Symile: contrast by the multilinear inner product of all modalities (Saporta et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Logs
from pretrain.objectives.multiway import Multiway, MultiwayOptions, of_rank, positions, summed, touched, unit
from pretrain.objectives.temperature import TemperatureConfig
from shards.errors import ConfigError

MOST_ALL = 3


@OBJECTIVES.register("symile")
class Symile(Multiway):
    r"""Contrast every modality with combinations of the others, by the multilinear inner product.

    .. math:: \mathrm{MIP}(z^1..z^M) = \sum_d \prod_m z^m_d,\quad
              L = \frac1M \sum_m \mathrm{mean}_i
              \big[ -s\,\mathrm{MIP}_i + \log\sum_c e^{s\,\mathrm{MIP}(z^m_i, c)} \big]

    It bounds the total correlation, so that it learns what only three modalities together tell. The candidates c of
    an anchor are its own others and, as negatives,

    - ``all``: every combination of rows of the others, B^(M-1) of them (two or three embeddings);
    - ``shuffled``: B - 1 combinations, of the others each shuffled for itself: an approximation that depends on
      chance and on the order of the rows. The shuffles are a function of the number of training steps made, the same
      on all ranks, and are saved with the model's state.

    Rows that lack one of the inputs are left out: a product needs every factor. (The paper puts placeholders and
    tells the encoders by an indicator; that is no mask.) Flipping the signs of two modalities changes nothing, so
    the cosine of two modalities alone need not mean similarity after training.
    """

    class Config(MultiwayOptions):
        """Options of `Symile`.

        Attributes
        ----------
        negatives : str
            ``all`` or ``shuffled``.
        """

        kind: Literal["symile"] = "symile"
        chunk: int = 8
        negatives: Literal["all", "shuffled"] = "all"
        temperature: TemperatureConfig = TemperatureConfig(init=0.1)

    steps: Tensor

    def __init__(
        self, config: Config, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        if config.negatives == "all" and len(self.inputs) > MOST_ALL:
            raise ConfigError(
                f"all combinations of {len(self.inputs)} embeddings are too many negatives",
                where="objective.negatives",
                why=f"the batch size to the power of {len(self.inputs) - 1}, for every row",
                do='--set objective.negatives="shuffled"',
            )
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """Return this rank's share of the loss, and each anchor's share and the temperature to log."""
        scale = self.temperature()
        rows = positions(torch.stack([batch.present[name] for name in self.inputs]).all(dim=0))
        u = [unit(batch.z[name], rows) for name in self.inputs]
        mine = of_rank(rows, batch.local)
        generator = torch.Generator().manual_seed(int(self.steps))
        if self.training:
            self.steps += 1
        losses = []
        for at, anchor in enumerate(u):
            others = [other for number, other in enumerate(u) if number != at]
            shuffles = [torch.randperm(len(rows), generator=generator, device="cpu").to(rows.device) for _ in others]
            losses.append(self._anchored(scale * anchor, others, shuffles, mine))
        shares = torch.stack(losses) * (batch.world / max(1, len(rows)))
        logs = {f"loss/{name}": share for name, share in zip(self.inputs, shares.detach(), strict=True)}
        return shares.mean() + touched(*u, scale), {**logs, "temperature": 1 / scale.detach()[0]}

    def _anchored(self, anchor: Tensor, others: list[Tensor], shuffles: list[Tensor], mine: Tensor) -> Tensor:
        """Sum the cross entropies of this rank's rows of one anchor, scaled, (n, D)."""
        if not len(mine):
            return anchor.new_zeros(())
        rows, power = len(anchor), range(len(others))
        together = torch.stack(others).prod(dim=0)

        def terms(chosen: Tensor) -> Tensor:
            if self.config.negatives == "all":
                logits, own = all_combinations(anchor[chosen], others), chosen * sum(rows**p for p in power)
            else:
                own = chosen
                logits = shuffled_combinations(anchor[chosen], chosen, together[chosen], others, shuffles)
            return F.cross_entropy(logits, own, reduction="sum")

        return summed(terms, mine, self.config.chunk)


def all_combinations(anchor_rD: Tensor, others: list[Tensor]) -> Tensor:
    """Return the products (r, n^len(others)) of r anchors with every combination of rows of the others, (n, D) each."""
    product = anchor_rD
    for other in others[:-1]:
        product = (product[:, None] * other).flatten(0, 1)
    return (product @ others[-1].T).view(len(anchor_rD), -1)


def shuffled_combinations(
    anchor_rD: Tensor, rows: Tensor, own_rD: Tensor, others: list[Tensor], shuffles: list[Tensor]
) -> Tensor:
    """Return the products (r, n) of r anchors with the shuffled others; the column of its own row holds its positive.

    Parameters
    ----------
    anchor_rD : Tensor
        (r, D) anchors.
    rows : Tensor
        (r,) their rows.
    own_rD : Tensor
        (r, D) products of their own others.
    others, shuffles : list of Tensor
        (n, D) and the order (n,) of each.
    """
    together = torch.stack([other[order] for other, order in zip(others, shuffles, strict=True)]).prod(dim=0)
    logits, positive = anchor_rD @ together.T, (anchor_rD * own_rD).sum(dim=1)
    # chance may put an anchor's own others together again: they are no negative
    again = torch.stack([order == rows[:, None] for order in shuffles]).all(dim=0)
    return logits.masked_fill(again, -torch.inf).scatter(1, rows[:, None], positive[:, None])
