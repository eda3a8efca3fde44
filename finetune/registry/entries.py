"""What the registry holds: versions of models with their aliases, tags and metrics, found by any of these."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.registry.store import asking, every, known, versions_of
from shards.errors import ConfigError, RegistryError

DIGEST = "data_sha256"
MODALITIES = "modalities"
CONDITION = re.compile(r"\s*([^<>=]+?)\s*(<=|>=|<|>|=)\s*(\S+)\s*")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One version of a registered model.

    Attributes
    ----------
    name, version : str
        ``models:/name/version`` is its URI.
    aliases : tuple of str
        What points to it.
    tags, parameters : dict of str to str
        Of the version, and of the logged model that it is.
    metrics : dict of str to float
        Logged for that model.
    model_id, run_id : str
        MLflow's ids of model and run, "" where unknown.
    created_ms : int
        When, since 1970.
    """

    name: str
    version: str
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    model_id: str = ""
    run_id: str = ""
    created_ms: int = 0

    @property
    def uri(self) -> str:
        """The URI of this version."""
        return f"models:/{self.name}/{self.version}"


def entries(name: str | None = None) -> list[Entry]:
    """Return all versions of a model, or of all models, by name and newest first."""
    with asking("the registry cannot be read", about=name or "") as client:
        models = [client.get_registered_model(name)] if name else every(client.search_registered_models)
        aliases = {model.name: dict(model.aliases) for model in models}
        # all at once: a name that no filter can hold would keep the others from being read
        versions = versions_of(client, name) if name else every(client.search_model_versions)
        found = [_entry(client, version, aliases.get(version.name, {})) for version in versions]
    return sorted(found, key=lambda entry: (entry.name, -int(entry.version)))


def find(uri: str) -> Entry | None:
    """Return what a URI of the registry names, None where it is a logged model or run without a version."""
    if not uri.startswith("models:/") or uri.startswith("models:/m-"):
        return None
    name, _, version = uri.removeprefix("models:/").partition("/")
    name, _, alias = name.partition("@")
    with asking(f"the registry has no '{uri}'", about=name) as client:
        model = client.get_registered_model(name)
        if alias:
            found = client.get_model_version_by_alias(name, alias)
        elif version == "latest":
            numbers = [int(version.version) for version in versions_of(client, name)]
            if not numbers:
                raise RegistryError(f"'{name}' has no version yet", where=uri)
            found = client.get_model_version(name, str(max(numbers)))
        else:
            found = client.get_model_version(name, version)
        return _entry(client, found, dict(model.aliases))


def search(
    found: Iterable[Entry],
    *,
    metrics: Sequence[str] = (),
    tags: Sequence[str] = (),
    alias: str | None = None,
    modalities: Sequence[str] = (),
    data: str | None = None,
) -> list[Entry]:
    """Return the entries that satisfy every condition.

    Parameters
    ----------
    found : iterable of Entry
        Among these.
    metrics : sequence of str
        ``val_mae<0.1``; an entry without the metric does not satisfy it.
    tags : sequence of str
        ``split=chemical_system``, of tags or parameters.
    alias : str, optional
        Must point to it.
    modalities : sequence of str
        All of them it must read.
    data : str, optional
        Beginning of the sha256 of the data set's manifest.
    """
    tests = [_metric(condition) for condition in metrics] + [_tag(condition) for condition in tags]
    if alias is not None:
        tests.append(lambda entry: alias in entry.aliases)
    if modalities:
        tests.append(lambda entry: set(modalities) <= set(_known(entry).get(MODALITIES, "").split(",")))
    if data is not None:
        tests.append(lambda entry: _known(entry).get(DIGEST, "").startswith(data))
    return [entry for entry in found if all(test(entry) for test in tests)]


def _metric(condition: str) -> Callable[[Entry], bool]:
    match = CONDITION.fullmatch(condition)
    try:
        name, compare, bound = match[1], OPERATORS[match[2]], float(match[3])  # type: ignore[index]
    except (TypeError, ValueError):
        raise ConfigError(f"'{condition}' is no condition on a metric", do="--metric 'val_mae<0.1'") from None
    return lambda entry: name in entry.metrics and compare(entry.metrics[name], bound)


def _tag(condition: str) -> Callable[[Entry], bool]:
    name, equals, value = condition.partition("=")
    if not equals:
        raise ConfigError(f"'{condition}' is no condition on a tag", do="--tag split=chemical_system")
    return lambda entry: _known(entry).get(name) == value


def _known(entry: Entry) -> dict[str, str]:
    return {**entry.parameters, **entry.tags}


def _entry(client: Any, version: Any, aliases: dict[str, Any]) -> Entry:
    source = (version.source or "").removeprefix("models:/")
    model_id = version.model_id or (source if source.startswith("m-") else "")
    model = known(client.get_logged_model, model_id) if model_id else None
    return Entry(
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))),
        tags=dict(version.tags),
        parameters=dict(model.params or {}) if model else {},
        metrics={metric.key: metric.value for metric in (model.metrics or [])} if model else {},
        model_id=model_id,
        run_id=version.run_id or (model.source_run_id if model else "") or "",
        created_ms=int(version.creation_timestamp or 0),
    )
