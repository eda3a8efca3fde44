"""Sources, one adapter a file: each lists items and reads records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shards.sources.base import SOURCES, Item, Record, Source

__all__ = ["SOURCES", "Item", "Record", "Source", "source"]


def source(table: Mapping[str, Any]) -> Source:
    """Build a source from its table (``{"kind": "structures", "path": "cifs"}``).

    Raises
    ------
    ConfigError
        For an unknown kind, an unknown parameter (the closest known one is suggested) or a value out of range.
    """
    return SOURCES.options(table)
