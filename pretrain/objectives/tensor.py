"""TensorCLIP: contrast over the cube of all triples of three modalities (MLCM, arXiv 2312.00111 v1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Logs
from pretrain.objectives.multiway import Multiway, MultiwayOptions, of_rank, positions, summed, touched, unit
from pretrain.objectives.temperature import TemperatureConfig

Positives = Literal["graded", "diagonal"]


@dataclass(frozen=True)
class Axis:
    """One modality of the cube.

    Attributes
    ----------
    rows : Tensor
        (n,) global numbers of the rows that exist.
    u : Tensor
        (n, D) their unit vectors.
    all : Tensor
        (B, D) the unit vectors at their places, zero where there is none.
    exists : Tensor
        (B,) float, 1 where there is one.
    """

    rows: Tensor
    u: Tensor
    all: Tensor
    exists: Tensor

    @classmethod
    def of(cls, z: Tensor, present: Tensor) -> Axis:
        """Return the axis of a modality's embeddings (B, D)."""
        rows = positions(present)
        u = unit(z, rows)
        return cls(rows, u, u.new_zeros(z.shape).index_copy(0, rows, u), present.float())


@OBJECTIVES.register("tensor")
class TensorClip(Multiway):
    r"""Contrast over all triples of rows, one of each modality.

    .. math:: L = \sum_{\text{axes}} \mathrm{mean}_i \sum_{jk} w_{ijk}
              \Big[ -T_{ijk} + \log\sum_{j'k' : w_{ij'k'}=0} e^{T_{ij'k'}} \Big],\quad
              T_{ijk} = s \sum_d a_{id} b_{jd} c_{kd}

    with unit rows and w = 1 where i = j = k, 1/2 where exactly two are equal (``graded``), 0 elsewhere; with
    ``diagonal``, an earlier form of the same code, w = 1 where i = j = k and 0 elsewhere. A positive is not in the
    denominator: the loss may be negative, has no floor, and grows with the batch. So the temperature is fixed by
    default: a learned one falls to its limit as soon as positives win.

    A triple exists where each of its three members does, whichever rows they are of, and the mean is over the rows of
    the axis that have a positive. Every axis has the mask of its own orientation. A row without any negative counts
    with 0, where the published code gives NaN.
    """

    least = most = 3

    class Config(MultiwayOptions):
        """Options of `TensorClip`.

        Attributes
        ----------
        positives : str
            ``graded`` or ``diagonal``.
        """

        kind: Literal["tensor"] = "tensor"
        chunk: int = 8
        positives: Positives = "graded"
        temperature: TemperatureConfig = TemperatureConfig(learn=False, init=0.2)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """Return this rank's share of the loss, and each axis' share and the temperature to log."""
        scale = self.temperature()
        sides = {name: Axis.of(batch.z[name], batch.present[name]) for name in self.inputs}
        x, y, z = sides.values()
        turns = [(x, y, z), (y, z, x), (z, x, y)]
        losses = torch.stack([self._axis(*turn, scale=scale, batch=batch) for turn in turns])
        logs = {f"loss/{name}": loss for name, loss in zip(self.inputs, losses.detach(), strict=True)}
        total = losses.sum() + touched(x.u, y.u, z.u, scale)
        return total, {**logs, "temperature": 1 / scale.detach()[0]}

    def _axis(self, a: Axis, b: Axis, c: Axis, *, scale: Tensor, batch: GlobalBatch) -> Tensor:
        """Sum the terms of this rank's rows of the first axis, divided by the global count."""
        positives = self.config.positives
        weight, score = positive_sums(a, b, c, positives)
        count = int((weight > 0).sum())
        mine = of_rank(a.rows, batch.local)
        if not count or not len(mine):
            return scale.new_zeros(())

        def terms(chosen: Tensor) -> Tensor:
            rows = a.rows[chosen]
            pull = scale * score[rows]
            push, some = negatives(scale * a.u[chosen], rows, b, c, positives)
            return torch.where(some, weight[rows] * push - pull, 0.0).sum()

        return summed(terms, mine, self.config.chunk) * (batch.world / count)


def positive_sums(a: Axis, b: Axis, c: Axis, positives: Positives) -> tuple[Tensor, Tensor]:
    """Return sum_jk w_ijk, and sum_jk w_ijk T_ijk at scale 1, over the triples that exist: (B,) and (B,).

    No cube is needed: the sum over k of two equal indices i = j is one product with the sum of all c.
    """
    all_three, three = a.all * b.all * c.all, a.exists * b.exists * c.exists
    if positives == "diagonal":
        return three, all_three.sum(dim=1)
    # each of the three sums over two equal indices holds the triple of three equal ones once: 3/2 - 1/2 = 1
    weight = b.exists * c.exists.sum() + c.exists * b.exists.sum() + (b.exists * c.exists).sum()
    score = a.all * (b.all * c.all.sum(0) + c.all * b.all.sum(0) + (b.all * c.all).sum(0))
    return 0.5 * (a.exists * weight - three), 0.5 * (score - all_three).sum(dim=1)


def negatives(a_rD: Tensor, rows: Tensor, b: Axis, c: Axis, positives: Positives) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp (r,) over the negatives of r scaled anchors, and whether there is any; 0 where none."""
    logits = (a_rD[:, None] * b.u).flatten(0, 1) @ c.u.T
    logits = logits.view(len(rows), len(b.rows), len(c.rows))
    wrong = is_negative(rows, b.rows, c.rows, positives)
    # not -inf: a row of nothing else would have NaN for its gradient
    logits = logits.masked_fill_(~wrong, torch.finfo(logits.dtype).min)
    some = wrong.flatten(1).any(dim=1)
    return torch.where(some, logits.flatten(1).logsumexp(dim=1), 0.0), some


def is_negative(i: Tensor, j: Tensor, k: Tensor, positives: Positives) -> Tensor:
    """Say which triples of global row numbers are negatives, (len(i), len(j), len(k))."""
    ij, ik, jk = i[:, None] == j, i[:, None] == k, j[:, None] == k
    if positives == "diagonal":
        return ~(ij[:, :, None] & ik[:, None, :])
    return ~(ij[:, :, None] | ik[:, None, :] | jk)
