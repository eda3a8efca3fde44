"""Where the materials of a stream come from, cut into parts that any process can read alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import xxhash

from finetune.data import check_schema
from finetune.materials import Material
from shards.errors import DataError
from shards.locate import EMBEDDED, locate
from shards.manifest import MANIFEST
from shards.reader import Dataset
from shards.schema import ModalitySpec, Sample
from shards.sources.base import Item, Record
from shards.sources.structures import StructuresSource
from shards.store import is_url

# A material by its id, and how to read it: what that raises is the material's own trouble.
Named = tuple[str, Callable[[], Any]]


class Work(Protocol):
    """The materials of one part, in order; sent to whichever process computes it."""

    def __iter__(self) -> Iterator[Named]: ...


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """Materials in their order.

    Attributes
    ----------
    parts : iterable of Work
        In order; all but the last of the same size.
    count : int, optional
        Number of parts, None where only the end will tell.
    digest : str
        Identity of what is read; empty where it cannot be known beforehand.
    """

    parts: Iterable[Work]
    count: int | None
    digest: str


@dataclass(frozen=True)
class ShardRows:
    """Consecutive samples of a data set."""

    place: Dataset | str
    modalities: tuple[str, ...]
    rows: range

    def __iter__(self) -> Iterator[Named]:
        dataset = _opened(self.place, self.modalities)
        return ((dataset.ids[row], partial(dataset.__getitem__, row)) for row in self.rows)


@dataclass(frozen=True)
class StructureItems:
    """Some of the structures of a folder, an archive or a file."""

    source: StructuresSource
    items: tuple[Item, ...]

    def __iter__(self) -> Iterator[Named]:
        return ((item.id, partial(self.source.read, item)) for item in self.items)


@dataclass(frozen=True)
class Given:
    """Materials themselves, or paths of them, and the number of the first."""

    materials: Sequence[Any]
    first: int

    def __iter__(self) -> Iterator[Named]:
        for number, material in enumerate(self.materials, self.first):
            yield _name(material, number), partial(_same, material)


def incoming(source: Any, specs: Mapping[str, ModalitySpec], size: int) -> Incoming:
    """Cut a source into parts of ``size`` materials.

    Parameters
    ----------
    source : Dataset, str, Path, sequence or iterable
        Shards (a data set, its folder or URL, ``embedded:NAME``); a folder, an archive or a file of structures; or
        materials as `finetune.materials` reads them, such as a list of files.
    specs : mapping of str to ModalitySpec
        The modalities of the model.
    size : int
        Materials a part.
    """
    if isinstance(source, Dataset) or (isinstance(source, str | Path) and _is_shards(str(source))):
        return _of_shards(source if isinstance(source, Dataset) else _absolute(str(source)), specs, size)
    if isinstance(source, str | Path):
        structures = StructuresSource(path=Path(source).resolve())
        items = tuple(structures.items())
        works: list[Work] = [StructureItems(structures, items[i : i + size]) for i in range(0, len(items), size)]
        return Incoming(parts=works, count=len(works), digest=_digest(f"{item.id}\0{item.stamp}" for item in items))
    if isinstance(source, Sequence):
        works = [Given(source[i : i + size], i) for i in range(0, len(source), size)]
        known = all(isinstance(material, str | Path) for material in source)
        return Incoming(parts=works, count=len(works), digest=_digest(map(_stamped, source)) if known else "")
    return Incoming(parts=_cut(iter(source), size), count=None, digest="")


def _of_shards(place: Dataset | str, specs: Mapping[str, ModalitySpec], size: int) -> Incoming:
    dataset = place if isinstance(place, Dataset) else Dataset(place)
    names = tuple(name for name in specs if name in dataset.manifest.modalities)
    if not names:
        raise DataError(f"the data set has none of the modalities {sorted(specs)}", where=dataset.location)
    check_schema(dict(specs), dataset.select(names), names)
    rows = range(len(dataset))
    works = [ShardRows(place, names, rows[start : start + size]) for start in range(0, len(rows), size)]
    return Incoming(parts=works, count=len(works), digest=dataset.sha256)


def _is_shards(source: str) -> bool:
    return source.startswith(EMBEDDED) or is_url(source) or (Path(source) / MANIFEST).is_file()


def _absolute(source: str) -> str:
    place = locate(source)
    return str(place.resolve()) if isinstance(place, Path) else place


def _opened(place: Dataset | str, modalities: tuple[str, ...]) -> Dataset:
    return place.select(modalities) if isinstance(place, Dataset) else _open(place, modalities)


@lru_cache(maxsize=1)
def _open(place: str, modalities: tuple[str, ...]) -> Dataset:
    return Dataset(place, modalities)


def _cut(materials: Iterator[Any], size: int) -> Iterator[Work]:
    for first in count(0, size):
        part = list(islice(materials, size))
        if part:
            yield Given(part, first)
        if len(part) < size:
            return


def _same(material: Any) -> Any:
    return material


def _name(material: Any, number: int) -> str:
    """Return a material's own id, or else its number in the stream."""
    if isinstance(material, Sample | Record):
        return material.id
    if isinstance(material, Material):
        return material.record.id
    if isinstance(material, Mapping) and "id" in material:
        return str(material["id"])
    own = isinstance(material, str | Path) and "\n" not in str(material)
    return str(material)[:300] if own else str(number)


def _stamped(material: str | Path) -> str:
    """Return what changes when a file, or the text that is given itself, does."""
    try:
        status = Path(material).stat()
    except (OSError, ValueError):
        return str(material)
    return f"{material}\0{status.st_size}-{status.st_mtime_ns}"


def _digest(lines: Iterable[str]) -> str:
    state = xxhash.xxh3_128()
    for line in lines:
        state.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return state.hexdigest()
