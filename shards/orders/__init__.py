"""Orders, one a file: which samples an epoch visits, in which sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shards.orders.base import ORDERS, EpochOrder, Order, Samples

__all__ = ["ORDERS", "EpochOrder", "Order", "Samples", "order"]


def order(table: Mapping[str, Any]) -> Order:
    """Build an order from its table (``{"kind": "curriculum", "difficulty": "missing", "epochs": 50}``).

    Raises
    ------
    ConfigError
        For an unknown kind, an unknown option (the closest known one is suggested) or a value out of range.
    """
    return ORDERS.options(table)
