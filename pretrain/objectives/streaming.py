r"""Sums over a matrix of logits that is never held: computed a chunk of rows at a time, and again in the backward pass.

Shapes: N rows to compare, D features, M of the rows are this rank's. The matrix is ``S = scale * x y^T`` (N, N), its
diagonal the positives. A rank computes its rows of S, and for losses in both directions its columns, so that the work
and the memory of a rank fall with the number of ranks; the gradient reaches the rows of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 256
INF = float("inf")


@dataclass(frozen=True, kw_only=True)
class Region:
    """What of the matrix a rank computes, and which candidates count.

    Attributes
    ----------
    mine : slice
        This rank's rows.
    chunk : int
        Rows of the matrix that are held at a time.
    groups : Tensor, optional
        (N,) int64; a negative of the anchor's own group is dropped.
    above : float, optional
        A negative is dropped where its cosine with the anchor's own partner, within the candidates' modality, is
        above this. No gradient passes the choice.
    exclude_self : bool
        The diagonal is the anchors themselves and no candidate.
    """

    mine: slice
    chunk: int = CHUNK
    groups: Tensor | None = None
    above: float | None = None
    exclude_self: bool = False

    @property
    def size(self) -> int:
        """Number of this rank's rows, M."""
        return self.mine.stop - self.mine.start

    def dropped(self, rows: slice, columns: slice, candidates_ND: Tensor) -> Tensor | None:
        """Return a mask over a tile of the matrix, True where a candidate does not count; None: all count."""
        if self.groups is None and self.above is None and not self.exclude_self:
            return None
        mask = torch.zeros(
            rows.stop - rows.start, columns.stop - columns.start, dtype=torch.bool, device=candidates_ND.device
        )
        if self.groups is not None:
            mask |= self.groups[rows, None] == self.groups[columns]
        if self.above is not None:
            mask |= candidates_ND[rows] @ candidates_ND[columns].T > self.above
        mask.diagonal(rows.start - columns.start).fill_(self.exclude_self)
        return mask


class Tile(NamedTuple):
    """A piece of the matrix; ``own``: of this rank's rows, over all columns."""

    rows: slice
    columns: slice
    own: bool


def own_tiles(total: int, region: Region) -> Iterator[Tile]:
    """Cut this rank's rows into chunks."""
    for start in range(region.mine.start, region.mine.stop, region.chunk):
        yield Tile(slice(start, min(start + region.chunk, region.mine.stop)), slice(0, total), own=True)


def other_tiles(total: int, region: Region) -> Iterator[Tile]:
    """Cut the other ranks' rows, over this rank's columns, into tiles of about the same number of elements."""
    rows = region.chunk * total // region.size
    for first, last in ((0, region.mine.start), (region.mine.stop, total)):
        for start in range(first, last, rows):
            yield Tile(slice(start, min(start + rows, last)), region.mine, own=False)


class Side(NamedTuple):
    """One direction of comparison within a tile: anchors are rows (``dim`` 1) or columns (``dim`` 0)."""

    number: int
    anchors: slice
    columns: slice
    dim: int
    mask: Tensor | None


def _sides(tile: Tile, x: Tensor, y: Tensor, region: Region, both: bool) -> Iterator[Side]:
    """Yield the directions for which a tile counts; the first covers all of it."""
    start = region.mine.start
    if tile.own:
        anchors = slice(tile.rows.start - start, tile.rows.stop - start)
        yield Side(0, anchors, tile.columns, 1, region.dropped(tile.rows, tile.columns, y))
    if both:
        columns = region.mine if tile.own else slice(0, region.size)
        yield Side(1, slice(0, region.size), columns, 0, region.dropped(tile.rows, region.mine, x))


class _Scratch:
    """Memory for one tile, used for each: fresh memory would cost about as much as what is computed in it."""

    def __init__(self, like_ND: Tensor, region: Region) -> None:
        total = len(like_ND)
        self.flat = like_ND.new_empty(min(region.chunk, total) * total)

    def shaped(self, rows: int, columns: int) -> Tensor:
        return self.flat[: rows * columns].view(rows, columns)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a b^T."""
        return torch.mm(a, b.T, out=self.shaped(len(a), len(b)))

    def difference(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a - b, of the shape of a."""
        return torch.sub(a, b, out=self.shaped(*a.shape))


def _lse(logits: Tensor, dim: int, scratch: _Scratch) -> Tensor:
    # finite, so that nothing but -inf gives exp(-inf) = 0
    top = logits.amax(dim, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    return scratch.difference(logits, top).exp_().sum(dim).log_().add_(top.squeeze(dim))


class _LogSumExp(torch.autograd.Function):
    """See `log_sum_exp`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, region: Region, both: bool, gaps: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        scaled, scratch, more = x * scale, _Scratch(x, region), _Scratch(x, region)
        lse = x.new_full((2, region.size), -INF)
        total, kept = x.new_zeros(2, region.size), x.new_zeros(2, region.size)
        positive = x.new_empty(region.size)
        for tile in _tiles(len(x), region, both):
            logits = scratch.product(scaled[tile.rows], y[tile.columns])
            for side, anchors, columns, dim, mask in _sides(tile, x, y, region, both):
                part = logits[:, columns]
                if gaps:
                    total[side, anchors] += (part if mask is None else part.masked_fill(mask, 0.0)).sum(dim)
                    kept[side, anchors] += part.shape[dim] if mask is None else (~mask).sum(dim)
                if mask is not None:
                    part = part.masked_fill(mask, -INF)
                # a running maximum in effect: logaddexp shifts by the larger of what it adds
                lse[side, anchors] = torch.logaddexp(lse[side, anchors], _lse(part, dim, more))
                if dim == 1:
                    positive[anchors] = logits.diagonal(tile.rows.start)
        ctx.save_for_backward(x, y, scale, lse, kept)
        ctx.region, ctx.both, ctx.gaps = region, both, gaps
        return lse, positive, positive - total / kept.clamp(min=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, y, scale, lse, kept), (by_lse, by_positive, by_gap) = ctx.saved_tensors, grads
        region, scaled = ctx.region, x * scale
        scratch, more = _Scratch(x, region), _Scratch(x, region)
        by_mean, by_diagonal = by_gap / kept.clamp(min=1), by_positive + by_gap.sum(0)
        dx, dy = torch.zeros_like(x), torch.zeros_like(y)
        for tile in _tiles(len(x), region, ctx.both):
            logits = scratch.product(scaled[tile.rows], y[tile.columns])
            grad = logits
            for side, anchors, columns, dim, mask in _sides(tile, x, y, region, ctx.both):
                shift = lse[side, anchors].unsqueeze(dim)
                # the logits are needed once more after the rows' part, and not after the columns'
                part = more.difference(logits, shift) if dim == 1 else logits[:, columns].sub_(shift)
                if mask is not None:
                    # after the difference: where no candidate is left, that is infinite
                    part.masked_fill_(mask, -INF)
                part.exp_().mul_(by_lse[side, anchors].unsqueeze(dim))
                if ctx.gaps:
                    mean = by_mean[side, anchors].unsqueeze(dim)
                    part -= mean if mask is None else mean * ~mask
                if dim == 1:
                    part.diagonal(tile.rows.start).add_(by_diagonal[anchors])
                    grad = part
                elif tile.own:
                    grad[:, columns] += part
            torch.mm(grad, y[tile.columns], out=dx[tile.rows])
            dy[tile.columns].addmm_(grad.T, scaled[tile.rows])
        return dx * scale, dy, (x * dx).sum().reshape(scale.shape), None, None, None


def _tiles(total: int, region: Region, both: bool) -> Iterator[Tile]:
    yield from own_tiles(total, region)
    if both:
        yield from other_tiles(total, region)


def log_sum_exp(
    x_ND: Tensor, y_ND: Tensor, *, scale: Tensor, region: Region, both: bool = True, gaps: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return what softmax losses need of this rank's rows and columns of ``S = scale * x y^T``.

    .. math:: \mathrm{lse}_{0i} = \log\sum_j e^{S_{ij}},\quad \mathrm{lse}_{1j} = \log\sum_i e^{S_{ij}}

    over the candidates that count (``-inf`` where none does), exact at any temperature.

    Parameters
    ----------
    x_ND, y_ND : Tensor
        Unit rows of all ranks, float32 or float64.
    scale : Tensor
        (1,) logit scale; it has a gradient too.
    region : Region
        This rank's rows, at least one, and the candidates.
    both : bool
        Columns as well as rows.
    gaps : bool
        Compute the gaps too.

    Returns
    -------
    lse : Tensor
        (2, M), for rows and for columns.
    positive : Tensor
        (M,) diagonal of S.
    gap : Tensor
        (2, M) the positive less the mean of the candidates' logits, for label smoothing; without meaning unless
        ``gaps``.
    """
    return _LogSumExp.apply(x_ND, y_ND, scale, region, both, gaps)


class _SigmoidSum(torch.autograd.Function):
    """See `sigmoid_sum`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, region: Region) -> Tensor:
        scaled, sums, scratch = x * scale, x.new_empty(region.size), _Scratch(x, region)
        for tile in own_tiles(len(x), region):
            logits = _signed(scaled, y, bias, tile, scratch)
            losses, mask = F.softplus(logits), _either(tile, x, y, region)
            if mask is not None:
                losses.masked_fill_(mask, 0.0)
            sums[tile.rows.start - region.mine.start : tile.rows.stop - region.mine.start] = losses.sum(1)
        ctx.save_for_backward(x, y, scale, bias)
        ctx.region = region
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, y, scale, bias), (by_sum,) = ctx.saved_tensors, grads
        region, start, scaled = ctx.region, ctx.region.mine.start, x * scale
        scratch = _Scratch(x, region)
        dx, dy, dbias = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(bias)
        for tile in own_tiles(len(x), region):
            grad = _signed(scaled, y, bias, tile, scratch).sigmoid_()
            grad.mul_(by_sum[tile.rows.start - start : tile.rows.stop - start, None])
            grad.diagonal(tile.rows.start).neg_()
            mask = _either(tile, x, y, region)
            if mask is not None:
                grad.masked_fill_(mask, 0.0)
            torch.mm(grad, y, out=dx[tile.rows])
            dy.addmm_(grad.T, scaled[tile.rows])
            dbias += grad.sum()
        return dx * scale, dy, (x * dx).sum().reshape(scale.shape), dbias, None


def _signed(scaled: Tensor, y: Tensor, bias: Tensor, tile: Tile, scratch: _Scratch) -> Tensor:
    """Return the logits of a tile, negated where they belong to a positive."""
    logits = scratch.product(scaled[tile.rows], y).add_(bias)
    logits.diagonal(tile.rows.start).neg_()
    return logits


def _either(tile: Tile, x: Tensor, y: Tensor, region: Region) -> Tensor | None:
    """Drop a pair that is too similar in either modality: it is compared once, not in two directions."""
    by_x, by_y = (region.dropped(tile.rows, tile.columns, each) for each in (x, y))
    return None if by_x is None or by_y is None else by_x | by_y


def sigmoid_sum(x_ND: Tensor, y_ND: Tensor, *, scale: Tensor, bias: Tensor, region: Region) -> Tensor:
    r"""Return for each of this rank's rows the sum of -log sigmoid over its pairs, (M,).

    .. math:: \sum_j \mathrm{softplus}(-y_{ij} (S_{ij} + b)),\quad y_{ij} = 1 \text{ if } i = j \text{ else } -1

    Parameters
    ----------
    x_ND, y_ND, scale, region
        As in `log_sum_exp`.
    bias : Tensor
        (1,) b.
    """
    return _SigmoidSum.apply(x_ND, y_ND, scale, bias, region)
