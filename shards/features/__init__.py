"""Feature steps by name: what turns a source record into the arrays of one modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shards.errors import ConfigError, suggest
from shards.features.base import Feature
from shards.features.charge_density import ChargeDensityFeature
from shards.features.crystal import CrystalFeature
from shards.features.dos import DosFeature
from shards.features.text import TextFeature
from shards.features.xrd import XrdFeature

FEATURES: dict[str, type[Feature]] = {
    "crystal": CrystalFeature,
    "dos": DosFeature,
    "xrd": XrdFeature,
    "charge_density": ChargeDensityFeature,
    "text": TextFeature,
}

__all__ = ["FEATURES", "Feature", "feature"]


def feature(table: Mapping[str, Any]) -> Feature:
    """Build a feature step from its table (``{"step": "dos", "points": 301}``).

    Raises
    ------
    ConfigError
        For an unknown step, an unknown parameter (the closest known one is suggested) or a value
        out of range.
    """
    if "step" not in table:
        raise ConfigError("this feature has no 'step'", why=f"known: {', '.join(sorted(FEATURES))}")
    step = table["step"]
    if step not in FEATURES:
        raise ConfigError(f"there is no feature step '{step}'", why=suggest(str(step), FEATURES))
    kind = FEATURES[step]
    try:
        return kind(**table)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            path = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                lines.append(f"unknown parameter '{path}': {suggest(path, kind.model_fields)}")
            else:
                lines.append(f"'{path}': {item['msg']}" if path else item["msg"])
        raise ConfigError("; ".join(lines), where=f"feature step '{step}'") from None
