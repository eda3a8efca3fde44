"""Batches by budget: as many samples as fit under a number of atoms, edges or tokens."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from shards.schema import Strict


class Budget(Strict):
    """The most that a global batch may hold, beside its number of samples.

    Attributes
    ----------
    axis : str
        A ragged axis, ``crystal.edges``; a sample that lacks the modality counts 0.
    max : int
        Elements of that axis in a GLOBAL batch, over all ranks. A sample that is larger than this alone is a batch of
        its own: it is never left out.
    """

    axis: str = Field(pattern=r"^\w+\.\w+$")
    max: int = Field(gt=0)


def pack(sizes: np.ndarray, *, most: int, batch_size: int) -> np.ndarray:
    """Cut an order into batches, greedily: a batch takes the next sample as long as it fits.

    Parameters
    ----------
    sizes : ndarray
        (N,) int64 size of each sample, in order.
    most : int
        Largest total size of a batch; a single sample may exceed it.
    batch_size : int
        Largest number of samples of a batch.

    Returns
    -------
    ndarray
        (S + 1,) int64: batch s is ``order[bounds[s]:bounds[s + 1]]``.
    """
    totals = np.cumsum(sizes, dtype=np.int64)
    bounds, filled = [0], 0
    while bounds[-1] < len(sizes):
        start = bounds[-1]
        stop = int(np.searchsorted(totals, filled + most, side="right"))
        bounds.append(min(max(stop, start + 1), start + batch_size))
        filled = int(totals[bounds[-1] - 1])
    return np.array(bounds, dtype=np.int64)


def balanced_slice(sizes: np.ndarray, rank: int, world: int) -> slice:
    """Return the rows of a global batch that ``rank`` of ``world`` takes: contiguous, about equal in total size.

    No rank gets more than its share by more than one sample's size. A rank may get no row.

    Parameters
    ----------
    sizes : ndarray
        (B,) int64 size of each row.
    """
    # one unit for all rows together keeps rows of size 0 from going to one rank
    totals = np.concatenate([[0], np.cumsum(sizes * len(sizes) + 1)])
    middles = (totals[:-1] + totals[1:]) * world
    first, last = np.searchsorted(middles, [2 * rank * totals[-1], 2 * (rank + 1) * totals[-1]])
    return slice(int(first), int(last))
