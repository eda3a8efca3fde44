"""From what a recipe calls a data set to a folder of shards; the embedded sets are built on first use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from shards.build import SplitPlan, build
from shards.embedded import names
from shards.errors import DataError
from shards.features import feature
from shards.manifest import MANIFEST, Manifest
from shards.sources.embedded import embedded_records

EMBEDDED = "embedded:"
FEATURES = {name: feature({"step": name}) for name in ("crystal", "dos", "charge_density", "text", "xrd")}
SPLITS = {"chemical_system": SplitPlan(by="chemical_system")}


def cache_folder() -> Path:
    """Return the folder for what can be built or fetched again: ``MATLOOM_CACHE``, or ``~/.cache/matloom``."""
    return Path(os.environ.get("MATLOOM_CACHE", Path.home() / ".cache" / "matloom"))


def build_embedded(
    name: str, out: Path, *, workers: int = 1, seed: int = 0, progress: Callable[[int], None] | None = None
) -> Manifest:
    """Build the shards of an embedded data set, split by chemical system 70 / 10 / 20."""
    return build(
        embedded_records(name),
        FEATURES,
        out,
        name=name,
        source=f"{EMBEDDED}{name}",
        splits={key: SplitPlan(by=plan.by, fractions=plan.fractions, seed=seed) for key, plan in SPLITS.items()},
        workers=workers,
        shard_samples=128,
        progress=progress,
    )


def locate(path: str) -> Path:
    """Return the folder of a data set, building an embedded one into the cache where it is not there yet."""
    if not path.startswith(EMBEDDED):
        return Path(path)
    name = path.removeprefix(EMBEDDED)
    folder = cache_folder() / "shards" / name
    if name not in names() or not (folder / MANIFEST).is_file():
        build_embedded(name, folder)
    return folder


def existing(path: str) -> Path:
    """Return the folder of a data set that is there already, or raise `DataError`: for ranks other than the first."""
    folder = locate(path) if not path.startswith(EMBEDDED) else cache_folder() / "shards" / path.removeprefix(EMBEDDED)
    if not (folder / MANIFEST).is_file():
        raise DataError("the data set is not on this host", where=folder, do="put it on storage that all hosts share")
    return folder
