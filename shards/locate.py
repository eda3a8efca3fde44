"""From what a recipe calls a data set to a folder of shards; the embedded sets are built on first use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from shards.build import Progress
from shards.build_recipe import embedded_recipe, run_build
from shards.cache import cache_folder
from shards.edition import edition
from shards.errors import DataError
from shards.manifest import MANIFEST, Manifest
from shards.staged import EMBEDDED, staged
from shards.store import is_url


def build_embedded(
    name: str, out: Path, *, workers: int = 1, seed: int = 0, progress: Callable[[Progress], None] | None = None
) -> Manifest:
    """Build the shards of an embedded data set, split by chemical system 70 / 10 / 20."""
    return run_build(embedded_recipe(name, seed=seed), out, workers=workers, progress=progress)


def locate(path: str) -> Path | str:
    """Return where a data set is read from, building an embedded one into the cache where it is not there yet.

    Processes that ask at once wait for the one that builds. A URL is returned as it is. A copy on this node's own disk
    (see `shards.staged`) goes before everything but a folder that has other data by now.
    """
    copy = staged(path)
    if copy is not None:
        return copy
    if is_url(path):
        return path
    if not path.startswith(EMBEDDED):
        return Path(path)
    folder = _cached(path.removeprefix(EMBEDDED))
    if not (folder / MANIFEST).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / MANIFEST).is_file():
                build_embedded(path.removeprefix(EMBEDDED), folder)
    return folder


def existing(path: str) -> Path | str:
    """Return where a data set that is there already is read from, or raise `DataError`: for ranks after the first."""
    copy = staged(path)
    if copy is not None:
        return copy
    if is_url(path):
        return path
    folder = _cached(path.removeprefix(EMBEDDED)) if path.startswith(EMBEDDED) else Path(path)
    if not (folder / MANIFEST).is_file():
        raise DataError("the data set is not on this host", where=folder, do="put it on storage that all hosts share")
    return folder


def _cached(name: str) -> Path:
    """Return the cache folder of an embedded set."""
    return cache_folder() / "shards" / edition(name)
