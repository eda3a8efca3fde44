"""Visits every sample once an epoch, shuffled: the default in training."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from shards.order import epoch_order
from shards.orders.base import ORDERS, EpochOrder, Order, Samples


@ORDERS.register("shuffled")
class Shuffled(Order):
    """Every sample once an epoch, shuffled in blocks of shards; see `shards.order.block_shuffle`.

    Attributes
    ----------
    block_shards : int
        Shards that are shuffled together; a node that streams from far away holds about as many at a time.
    """

    kind: Literal["shuffled"] = "shuffled"
    block_shards: int = Field(16, gt=0)

    def prepare(self, dataset: Samples, positions: np.ndarray, *, seed: int) -> EpochOrder:
        """Return the order of every epoch; see `Order.prepare`."""
        sizes = dataset.shard_sizes
        return lambda epoch: epoch_order(positions, sizes, seed=seed, epoch=epoch, block_shards=self.block_shards)
