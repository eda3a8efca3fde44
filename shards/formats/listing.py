"""Which parts of a file are structures: by the file's name, and without parsing more than it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from shards.errors import DataError
from shards.formats.ase_db import is_entry, rows
from shards.formats.cif import blocks
from shards.formats.extxyz import comment_text, frames
from shards.formats.json_entries import entries, lines
from shards.formats.packed import codec

SUFFIXES = {
    ".cif": "cif",
    ".mcif": "cif",
    ".vasp": "poscar",
    ".poscar": "poscar",
    ".contcar": "poscar",
    ".xyz": "xyz",
    ".extxyz": "xyz",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".db": "ase",
}
POSCAR_NAMES = ("POSCAR", "CONTCAR")


class Part(NamedTuple):
    """One structure of a file.

    Attributes
    ----------
    name : str
        Its number in the file, its row in a database, or its key.
    place : tuple of int, or int
        Offset and length in the (unpacked) file, or the row of a database; None = the whole file.
    own : bool
        Whether ``name`` identifies it without the file's name.
    refused : str
        Why it is not read; empty where it may be.
    """

    name: str
    place: tuple[int, int] | int | None
    own: bool = False
    refused: str = ""


def form(name: str) -> str:
    """Return the form of a file by its name (``cif``, ``xyz``, ...); empty where the name says nothing."""
    bare = name.rsplit("/", 1)[-1]
    bare = bare[: len(bare) - len(codec(bare))]
    suffix = next((suffix for suffix in SUFFIXES if bare.lower().endswith(suffix)), "")
    return SUFFIXES.get(suffix) or ("poscar" if bare.startswith(POSCAR_NAMES) else "")


def stem(name: str) -> str:
    """Return a file's name without the suffixes of its format and compression."""
    name = name[: len(name) - len(codec(name))]
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def parts(file: BinaryIO, path: Path, kind: str, id_key: str = "") -> Iterator[Part]:
    """Find the structures of a file, in its order.

    Parameters
    ----------
    file : binary file
        Its (unpacked) bytes; not read for a database.
    path : Path
        The file on disk, for a database.
    kind : str
        What `form` says of its name.
    id_key : str
        Key of a frame, row or entry that holds its id; a CIF or POSCAR has none.

    Yields
    ------
    Part
        At least one. Where the file is damaged, the last one is refused with the reason: it stands
        for everything that follows.
    """
    number = 0
    try:
        for part in _FINDERS.get(kind, _whole)(file, path, id_key):
            yield part
            number += 1
        if number:
            return
        yield Part("", None)
    except DataError as error:
        yield Part(str(number), None, refused=": ".join(filter(None, (error.what, error.why))))
    except Exception as error:  # the codecs raise whatever the first surprise in a damaged file causes
        yield Part(str(number), None, refused=f"the file cannot be read: {error!r}"[:300])


def _whole(file: BinaryIO, path: Path, id_key: str) -> Iterator[Part]:
    yield Part("", None)


def _cif(file: BinaryIO, path: Path, id_key: str) -> Iterator[Part]:
    found = list(blocks(file))
    if len(found) > 1:
        for number, place in enumerate(found):
            yield Part(str(number), place)


def _xyz(file: BinaryIO, path: Path, id_key: str) -> Iterator[Part]:
    for number, (start, size, comment) in enumerate(frames(file)):
        yield _identified(str(number), (start, size), comment_text(comment, id_key) if id_key else None, id_key)


def _ase(file: BinaryIO, path: Path, id_key: str) -> Iterator[Part]:
    for row, pairs in rows(path):
        yield _identified(str(row), row, lookup(pairs, id_key), id_key)


def _json(file: BinaryIO, path: Path, id_key: str) -> Iterator[Part]:
    for number, entry in enumerate(entries(file)):
        if is_entry(entry.value):
            pairs = entry.value.get("key_value_pairs")
            key, own = entry.key or str(number), lookup(pairs if isinstance(pairs, dict) else {}, id_key)
        else:
            key, own = str(number), entry.key if entry.key and not id_key else lookup(entry.value, id_key)
        yield _identified(key, (entry.start, entry.size), own, id_key)


def _json_lines(file: BinaryIO, path: Path, id_key: str) -> Iterator[Part]:
    for number, entry in enumerate(lines(file)):
        yield _identified(str(number), (entry.start, entry.size), lookup(entry.value, id_key), id_key)


_FINDERS: dict[str, Callable[[BinaryIO, Path, str], Iterator[Part]]] = {
    "cif": _cif,
    "xyz": _xyz,
    "ase": _ase,
    "json": _json,
    "jsonl": _json_lines,
}


def _identified(number: str, place: tuple[int, int] | int, own: Any, id_key: str) -> Part:
    if isinstance(own, str | int | float) and str(own):
        return Part(str(own), place, own=True)
    return Part(number, place, refused=f"it has no '{id_key}' to be its id" if id_key else "")


def lookup(table: Any, key: str) -> Any:
    """Return ``table[key]``, or for ``a.b`` also ``table["a"]["b"]``; None where there is none."""
    if not key or not isinstance(table, Mapping):
        return None
    if key in table:
        return table[key]
    first, dot, rest = key.partition(".")
    return lookup(table.get(first), rest) if dot else None
