"""Which data an embedded set is: its name and all that its shards depend on, so that other ones get another folder."""

from __future__ import annotations

import xxhash

from shards.build import library_versions
from shards.build_recipe import embedded_recipe
from shards.embedded import names
from shards.errors import DataError, suggest
from shards.manifest import FORMAT


def edition(name: str) -> str:
    """Return the name of the folder of an embedded set, another one for other data, features or libraries."""
    if name not in names():
        raise DataError(f"there is no embedded data set '{name}'", why=suggest(name, names()))
    specs = [step.spec(modality).model_dump_json() for modality, step in embedded_recipe(name).features().items()]
    key = xxhash.xxh64_hexdigest(repr([FORMAT, library_versions(), specs]).encode())
    return f"{name}-{key}"
