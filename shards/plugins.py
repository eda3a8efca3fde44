"""Registries of plug-ins: features, encoders, objectives and heads, each with a typed configuration.

A plug-in is a class with a nested pydantic model ``Config`` (derived from `Options`), or is itself
such a model; it is registered under the ``kind`` by which recipes name it. A built-in one is
imported when it is first asked for, so that a run pays for the libraries of the plug-ins that it
uses; third-party ones are found by entry points (``[project.entry-points."matloom.encoders"]``,
``mine = "my_package:MyEncoder"``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from shards.errors import ConfigError, suggest

T = TypeVar("T", bound=type)


class Options(BaseModel):
    """Base of every plug-in's ``Config``: keyword-only, frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str


class Registry(Generic[T]):
    """Plug-ins of one family by ``kind``.

    Parameters
    ----------
    family : str
        Name used in error messages (``encoder``).
    builtin : mapping of str to str
        Kind to the module whose import registers it.
    key : str
        The key of a table that names the plug-in.
    """

    def __init__(self, family: str, builtin: Mapping[str, str], key: str = "kind") -> None:
        self.family = family
        self.builtin = builtin
        self.key = key
        self._plugins: dict[str, T] = {}

    def register(self, kind: str) -> Callable[[T], T]:
        """Return a class decorator that registers a plug-in under ``kind``."""

        def decorate(plugin: T) -> T:
            if self._plugins.setdefault(kind, plugin) is not plugin:
                raise ConfigError(f"{self.family} '{kind}' is registered twice", where=plugin.__module__)
            return plugin

        return decorate

    def kinds(self) -> list[str]:
        """Names of all plug-ins, built-in and third-party."""
        return sorted({*self.builtin, *self._plugins, *(point.name for point in self._entry_points())})

    def get(self, kind: str) -> T:
        """Return the plug-in class named ``kind``.

        Raises
        ------
        ConfigError
            Where no plug-in of the family has that name; the message suggests the closest one.
        """
        if kind not in self._plugins and kind in self.builtin:
            importlib.import_module(self.builtin[kind])
        if kind not in self._plugins:
            point = next((p for p in self._entry_points() if p.name == kind), None)
            if point is None:
                raise ConfigError(f"there is no {self.family} '{kind}'", why=suggest(kind, self.kinds()))
            try:
                plugin = point.load()
            except Exception as error:
                raise ConfigError(
                    f"the {self.family} '{kind}' cannot be loaded", where=point.value, why=repr(error)
                ) from error
            self._plugins.setdefault(kind, plugin)
        return self._plugins[kind]

    def options(self, table: Mapping[str, Any]) -> Any:
        """Validate a table (``{kind = "potnet", layers = 3}``) into the plug-in's model."""
        if self.key not in table:
            raise ConfigError(f"this {self.family} has no '{self.key}'", why=f"known: {', '.join(self.kinds())}")
        kind = table[self.key]
        if not isinstance(kind, str):
            raise ConfigError(f"the '{self.key}' of this {self.family} is no text", why=repr(kind))
        plugin = self.get(kind)
        config: type[BaseModel] = plugin if issubclass(plugin, BaseModel) else plugin.Config  # type: ignore[attr-defined]
        try:
            return config(**table)
        except ValidationError as error:
            raise config_error(error, config, where=f"{self.family} '{kind}'") from None

    def _entry_points(self) -> list[Any]:
        return list(entry_points(group=f"matloom.{self.family}s"))


def config_error(error: ValidationError, model: type[BaseModel], *, where: str) -> ConfigError:
    """Turn pydantic's report into one `ConfigError` that suggests the right key for an unknown one."""
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            owner = _owner(model, item["loc"])
            lines.append(f"unknown key '{path}': {suggest(str(item['loc'][-1]), owner.model_fields)}")
        else:
            lines.append(f"'{path}': {item['msg']}")
    return ConfigError("; ".join(lines), where=where, do="matloom config schema")


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _owner(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the nested model that holds the last key of ``path``."""
    within: type[BaseModel] | None = None
    for part in path[:-1]:
        if within is not None:
            # the key of a table of models, [modalities.NAME], or the place in a list of them
            model, within = within, None
            continue
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        nested = [t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)]
        if nested and get_origin(field.annotation) in (dict, tuple, list):
            within = nested[0]
        elif nested:
            model = nested[0]
    return model
