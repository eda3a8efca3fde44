"""GRAM: the volume that the embeddings of one sample span (Cicchetti et al., ICLR 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Logs
from pretrain.objectives.multiway import Multiway, MultiwayOptions, of_rank, positions, summed, touched, unit
from pretrain.objectives.temperature import TemperatureConfig
from shards.errors import ConfigError

# under the root of the volume: its gradient has no bound where vectors are dependent
EPSILON = 1e-6


@OBJECTIVES.register("gram")
class Gram(Multiway):
    r"""Contrast an anchor with the tuple of all other embeddings by the volume that they span.

    .. math:: S_{ij} = -s\,\sqrt{\det G(a_i, t_j)},\quad
              L = \tfrac12 [\mathrm{CE}(a \to t) + \mathrm{CE}(t \to a)]

    with G the Gram matrix of the unit vectors and label smoothing. A small volume is a good match.

    Volumes of different numbers of vectors are not comparable. So a row is compared on the modalities that it has
    itself, and with those rows alone that have them too; with two embeddings these are the rows of InfoNCE. Rows
    that lack the anchor, or have nothing else, are left out.

    Know what the volume cannot see: x and -x span none, so opposite vectors count as aligned, and so does a tuple of
    which any two coincide, wherever the third lies. The image-text matching head of the paper is not part of this.
    """

    class Config(MultiwayOptions):
        """Options of `Gram`.

        Attributes
        ----------
        anchor : str
            The embedding that is compared with the tuple of the others.
        label_smoothing : float
            Share of the target that is spread over all candidates.
        """

        kind: Literal["gram"] = "gram"
        anchor: str = "crystal"
        label_smoothing: float = Field(0.1, ge=0, lt=1)
        temperature: TemperatureConfig = TemperatureConfig(init=0.07)

    def __init__(
        self, config: Config, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        anchor = self.known(config.anchor, where="objective.anchor")
        if anchor not in self.inputs:
            raise ConfigError(
                f"the anchor '{anchor}' is none of the inputs", where="objective.inputs", why=", ".join(self.inputs)
            )
        self.anchor, self.others = anchor, tuple(name for name in self.inputs if name != anchor)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """Return this rank's share of the loss, and the temperature to log."""
        scale = self.temperature()
        held = torch.stack([batch.present[name] for name in self.others], dim=1)
        valid = batch.present[self.anchor] & held.any(dim=1)
        count = int(valid.sum())
        loss = touched(*(unit(batch.z[name], positions(batch.present[name])) for name in self.inputs), scale)
        for names, own, rows in self._subsets(held, valid):
            # which of the candidates are this rank's rows of exactly this subset
            mine = of_rank(rows, batch.local)
            mine = mine[own[rows[mine]]]
            if len(mine):
                loss = loss + self._compared(names, rows, mine, scale, batch) * (batch.world / count)
        return loss, {"temperature": 1 / scale.detach()[0]}

    def _subsets(self, held: Tensor, valid: Tensor) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """Yield every set of others that some row has: names, rows with exactly it (B,) bool, rows with it (n,)."""
        for subset in held[valid].unique(dim=0):
            names = [name for name, inside in zip(self.others, subset.tolist(), strict=True) if inside]
            yield names, valid & (held == subset).all(dim=1), positions(valid & held[:, subset].all(dim=1))

    def _compared(self, names: list[str], rows: Tensor, mine: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
        """Sum over ``mine`` both cross entropies among the candidates ``rows``."""
        anchors = unit(batch.z[self.anchor], rows)
        tuples = torch.stack([unit(batch.z[name], rows) for name in names], dim=1)

        def terms(chosen: Tensor) -> Tensor:
            to_tuples = -scale * volumes(anchors[chosen], tuples)
            to_anchors = -scale * volumes(anchors, tuples[chosen]).T
            entropies = [
                F.cross_entropy(logits, chosen, reduction="sum", label_smoothing=self.config.label_smoothing)
                for logits in (to_tuples, to_anchors)
            ]
            return 0.5 * torch.stack(entropies).sum()

        return summed(terms, mine, self.config.chunk)


def volumes(anchors_nD: Tensor, tuples_mkD: Tensor) -> Tensor:
    r"""Return the volumes (n, m) that every anchor spans with every tuple, of unit vectors.

    With G the Gram matrix of a tuple and g the products of its members with an anchor, the determinant of the
    bordered matrix is :math:`\det G - g^T \mathrm{adj}(G)\, g`. It is a polynomial: nothing is divided by, so that its
    gradient exists where vectors are dependent too.
    """
    g_nmk = torch.einsum("nd,mkd->nmk", anchors_nD, tuples_mkD)
    # in double precision: small volumes are differences of large terms
    determinant, adjugate = (each.to(g_nmk.dtype) for each in determinants((tuples_mkD @ tuples_mkD.mT).double()))
    squared = determinant - (torch.einsum("nmk,mkl->nml", g_nmk, adjugate) * g_nmk).sum(dim=2)
    return (squared.clamp(min=0) + EPSILON).sqrt()


def determinants(matrices: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the determinants (...) and adjugates (..., k, k) of small matrices; A adj(A) = det(A) I.

    By Faddeev and LeVerrier's recursion over the characteristic polynomial's coefficients, k matrix products:

    .. math:: M_1 = I,\quad c_i = -\mathrm{tr}(A M_i) / i,\quad M_{i+1} = A M_i + c_i I,\quad
              \det A = (-1)^k c_k,\quad \mathrm{adj}\, A = (-1)^{k-1} M_k
    """
    size = matrices.shape[-1]
    identity = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    power, product = identity.expand_as(matrices), matrices
    for order in range(1, size + 1):
        coefficient = -product.diagonal(dim1=-2, dim2=-1).sum(dim=-1) / order
        if order < size:
            power = product + coefficient[..., None, None] * identity
            product = matrices @ power
    return (-1) ** size * coefficient, (-1) ** (size - 1) * power
