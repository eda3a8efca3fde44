"""Visits the positions as they are given, in every epoch: for evaluation."""

from __future__ import annotations

from typing import Literal

import numpy as np

from shards.orders.base import ORDERS, EpochOrder, Order, Samples


@ORDERS.register("sequential")
class Sequential(Order):
    """The positions as given, the same in every epoch."""

    kind: Literal["sequential"] = "sequential"

    def prepare(self, dataset: Samples, positions: np.ndarray, *, seed: int) -> EpochOrder:
        """Return the order of every epoch; see `Order.prepare`."""
        return lambda epoch: positions
