"""Draws samples that have a rare modality more often."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Literal

import numpy as np

from shards.orders.base import ORDERS, EpochOrder, Order, Samples, present


@ORDERS.register("inverse_availability")
class InverseAvailability(Order):
    """Sample i is drawn in proportion to 1 / availability of the rarest modality that it has.

    The availability of a modality is the share of the samples that have it. With A_i that of sample i's rarest
    modality (1 where it has none), an epoch of N draws visits sample i

        c_i = N (1 / A_i) / sum_j (1 / A_j)

    times in expectation over epochs, and floor(c_i) or ceil(c_i) times in every one: c_i is a ratio of whole numbers,
    nothing is rounded on the way. All samples of one A_i together get floor or ceil of their expected draws. Where
    every sample has one modality, each of the M modalities gets N / M draws; where a common modality accompanies the
    rare ones, it is of course drawn with them. The visits of a sample are spread evenly over the epoch, so that copies
    of it seldom meet in a batch (where a contrastive loss would take them for strangers); shards are therefore visited
    all over the epoch. After Madrigal (arXiv 2503.02781), which draws a sample's second view in this way.
    """

    kind: Literal["inverse_availability"] = "inverse_availability"

    def prepare(self, dataset: Samples, positions: np.ndarray, *, seed: int) -> EpochOrder:
        """Return the order of every epoch; see `Order.prepare`."""
        positions = np.sort(np.asarray(positions, dtype=np.int64))
        has = present(dataset, positions)
        rarest = np.where(has, has.sum(axis=0), len(positions)).min(axis=1, initial=len(positions))
        values, kind, sizes = np.unique(rarest, return_inverse=True, return_counts=True)
        shares = [Fraction(int(size), int(value)) for size, value in zip(sizes, values, strict=True)]
        bounds = [len(positions) * bound / sum(shares) for bound in itertools.accumulate(shares)]

        def epoch_order(epoch: int) -> np.ndarray:
            rng = np.random.default_rng([seed, epoch])
            offset = Fraction(int(rng.integers(2**53)), 2**53)
            draws = np.diff([0, *(math.floor(bound + offset) for bound in bounds)])
            counts = (draws // sizes)[kind]
            for number, more in enumerate(draws % sizes):
                counts[rng.permutation(np.flatnonzero(kind == number))[:more]] += 1
            return positions[_spread(counts, rng)]

        return epoch_order


def _spread(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (sum of counts,) indices, index i ``counts[i]`` times at equal distances from a random start."""
    index = np.repeat(np.arange(len(counts)), counts)
    copy = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return index[np.argsort((copy + rng.random(len(counts))[index]) / counts[index], kind="stable")]
