"""Feature steps, one a file: what turns a source record into the arrays of one modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shards.features.base import FEATURES, Feature

__all__ = ["FEATURES", "Feature", "feature"]


def feature(table: Mapping[str, Any]) -> Feature:
    """Build a feature step from its table (``{"step": "dos", "points": 301}``).

    Raises
    ------
    ConfigError
        For an unknown step, an unknown parameter (the closest known one is suggested) or a value
        out of range.
    """
    return FEATURES.options(table)
