"""Tables of TOML or JSON into typed models: what every recipe of the project is read by."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shards.errors import ConfigError
from shards.plugins import config_error

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], tables: Mapping[str, Any], *, where: str) -> M:
    """Validate tables into a model, or raise `ConfigError` with a suggestion for an unknown key."""
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        raise config_error(error, model, where=where) from None


def read_tables(path: Path) -> dict[str, Any]:
    """Read a TOML or JSON file, or raise `ConfigError` saying what is wrong with it."""
    try:
        text = path.read_text()
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError("the recipe cannot be read", where=path, why=error.strerror) from None
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise ConfigError("the recipe is no valid TOML", where=path, why=str(error)) from None


def apply_overrides(tables: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return the tables with each ``a.b=c`` assigned."""
    tables = copy.deepcopy(tables)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"'{override}' is no assignment", do="--set objective.temperature.init=0.1")
        *parents, key = path.strip().split(".")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"'{parent}' in '{path}' is no table")
        table[key] = _toml_value(text.strip())
    return tables


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
