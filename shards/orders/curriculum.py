"""Begins with the easy samples and widens to all of them."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.order import block_shuffle, endless
from shards.orders.base import ORDERS, EpochOrder, Order, Samples, present


@ORDERS.register("curriculum")
class Curriculum(Order):
    """Epoch t draws evenly from the easiest fraction of the samples, lam(t).

    ``lam(t) = min(1, start + (1 - start) (t / epochs) ** power)``. The samples of epoch t are those whose difficulty is
    at most the lam(t)-quantile of all difficulties: ties at the quantile belong to it, so that nothing depends on how
    equal samples are numbered. An epoch stays N samples long: the easy ones are walked through in as many shuffled
    passes as it takes, the last one cut short, so that the numbers of visits differ by at most 1. From epoch
    ``epochs`` on it is every sample once an epoch. Source: AMCI-MLLM (preprints.org 202501.2114), for which specs give
    this schedule.

    Attributes
    ----------
    difficulty : str
        ``missing`` (the number of the recipe's modalities that a sample lacks), ``label:NAME``, ``tag:NAME`` (a tag
        that holds a number) or ``length:MODALITY.AXIS`` (``length:crystal.atoms``); larger is harder. A sample
        without the label, tag or modality counts as harder than all others.
    epochs : int
        Epoch T from which on all samples are drawn. In a mix an epoch is a pass over one of its data sets.
    start : float
        Fraction lam(0).
    power : float
        Above 1: slower at first.
    block_shards : int
        As in `Shuffled`.
    """

    kind: Literal["curriculum"] = "curriculum"
    difficulty: str = Field(pattern=r"^(missing|(label|tag):.+|length:\w+\.\w+)$")
    epochs: int = Field(gt=0)
    start: float = Field(0.3, gt=0, le=1)
    power: float = Field(1.0, gt=0)
    block_shards: int = Field(16, gt=0)

    def fraction(self, epoch: int) -> float:
        """Return lam(epoch)."""
        return min(1.0, self.start + (1 - self.start) * (epoch / self.epochs) ** self.power)

    def prepare(self, dataset: Samples, positions: np.ndarray, *, seed: int) -> EpochOrder:
        """Return the order of every epoch; see `Order.prepare`.

        Raises
        ------
        DataError
            Where no sample has the difficulty, there is no such modality or axis, or a tag is no number.
        """
        positions = np.asarray(positions, dtype=np.int64)
        hardness = self._hardness(dataset, positions)
        by_hardness, sizes, count = np.sort(hardness), dataset.shard_sizes, len(positions)

        def epoch_order(epoch: int) -> np.ndarray:
            # the subtraction keeps 0.7 x 10 = 7.000000000000001 from being rounded up to 8
            rank = math.ceil(self.fraction(epoch) * count - 1e-9)
            easy = positions[hardness <= by_hardness[max(rank, 1) - 1]]

            def one_pass(number: int) -> np.ndarray:
                return block_shuffle(easy, sizes, np.random.default_rng([seed, epoch, number]), self.block_shards)

            return endless(one_pass, len(easy), 0, count)

        return epoch_order

    def _hardness(self, dataset: Samples, positions: np.ndarray) -> np.ndarray:
        """Return (N,) float64 difficulties, infinite where unknown."""
        kind, _, name = self.difficulty.partition(":")
        if kind == "missing":
            return (~present(dataset, positions)).sum(axis=1).astype(np.float64)
        if kind == "length":
            has = dataset.presence(name.partition(".")[0])
            values = np.where(has, dataset.lengths(name), np.inf)[positions]
        else:
            read = _label if kind == "label" else _tag
            bare = dataset.select(())
            values = np.fromiter((read(bare, int(i), name) for i in positions), np.float64, len(positions))
        if np.isinf(values).all():
            raise DataError(f"no sample has the curriculum's difficulty '{self.difficulty}'")
        return values


def _label(dataset: Samples, position: int, name: str) -> float:
    value = dataset[position].labels.get(name, math.inf)
    return math.inf if math.isnan(value) else value


def _tag(dataset: Samples, position: int, name: str) -> float:
    sample = dataset[position]
    try:
        value = float(sample.tags.get(name, "inf"))
    except ValueError:
        raise DataError(f"the curriculum's tag '{name}' is no number", where=sample.id, why=sample.tags[name]) from None
    return math.inf if math.isnan(value) else value
