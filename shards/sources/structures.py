"""Structures in folders, in archives and in files that hold many, with what the files say of them."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.formats.ase_db import entry_structure, is_entry, row_structure
from shards.formats.files import files_below, is_hidden, refusal
from shards.formats.listing import Part, form, lookup, parts, stem
from shards.formats.packed import Archive, codec, is_archive, unpacked
from shards.formats.structure import (
    MAX_ATOMS,
    MAX_BYTES,
    XYZ,
    check,
    parse_described,
    structure_of_json,
)
from shards.schema import Strict
from shards.sources.base import SOURCES, Item, Record, Source

if TYPE_CHECKING:
    from pymatgen.core import Structure

TABLES = (".csv", ".tsv", ".tab", ".parquet")

# Streams of packed files are shared by the threads of a process and read in one go each.
_READING = threading.Lock()


class LabelKey(Strict):
    """Where a label comes from, whether it is divided by the number of atoms, and its shape where it is a tensor.

    A tensor is a list of lists, or all of its numbers row by row.
    """

    key: str
    per_atom: bool = False
    shape: tuple[int, ...] = ()


@SOURCES.register("structures")
class StructuresSource(Source):
    """Crystals of a folder, of an archive, or of one file with many.

    Read are CIF (several data blocks too), POSCAR and CONTCAR, extended XYZ with any number of
    frames, pymatgen JSON (a structure, a list, a mapping of ids, or one a line), and ASE databases
    (SQLite and JSON); all but SQLite databases also packed by gzip, bzip2 or xz, and in zip and tar
    archives, which are read in place. What cannot be read is quarantined with the reason.

    An id is the file's name from the folder on, without suffixes. In a file with several structures
    their number follows (``name/3``; rows of a database count from 1), but an id of its own, which
    is a key of a JSON mapping or the value of ``id_key``, stands alone.

    Attributes
    ----------
    path : Path
        A folder (with its subfolders), an archive, or a file.
    files : str
        Shell pattern of the names to read, from the folder on (``*`` crosses folders). By default what
        has a name as above: .cif, .vasp, POSCAR*, .xyz, .json, .jsonl, .db, ...
    id_key : str
        Key of an extended XYZ's comment line, a JSON entry or a row that holds the id.
    labels : dict of str to str or LabelKey
        Label, with its unit in the name, to the key that holds it (``energy_ev = "energy"``,
        ``energy_ev_per_atom = { key = "energy", per_atom = true }``); ``a.b`` is key b of object a. A
        record without the key, or with NaN, lacks the label.
    tags : dict of str to str
        Tag to the key that holds it.
    max_atoms : int
        Larger structures are refused.
    """

    kind: Literal["structures"] = "structures"
    path: Path
    files: str = ""
    id_key: str = ""
    labels: dict[str, str | LabelKey] = {}
    tags: dict[str, str] = {}
    max_atoms: int = Field(MAX_ATOMS, ge=1)

    def items(self) -> Iterable[Item]:
        """List the structures by file name, then as each file has them."""
        seen: dict[str, str] = {}
        for item in self._items():
            if item.id in seen:
                raise DataError(
                    f"two structures have the id '{item.id[:200]}'",
                    where=self.path,
                    why=f"in {seen[item.id]} and {_name(item.ref)}",
                    do="choose files by 'files', or name their ids by 'id_key'",
                )
            seen[item.id] = _name(item.ref)
            yield item
        if not seen:
            raise DataError(
                "there is no structure file", where=self.path, do="check the path, or say which files by 'files'"
            )

    def read(self, item: Item) -> Record:
        """Read one structure."""
        where = ":".join([str(self.path), *filter(None, [_name(item.ref)]), *map(str, item.ref.get("place", []))])
        if "refused" in item.ref:
            raise DataError("this is not read", where=where, why=item.ref["refused"])
        try:
            structure, info = self._structure(self.path / item.ref["file"], item)
            labels = {name: _label(info, key, len(structure)) for name, key in self.labels.items()}
            tags = {name: _tag(info, key) for name, key in self.tags.items()}
        except DataError as error:
            raise DataError(error.what, where=where, why=error.why, do=error.do) from None
        except Exception as error:  # parsers, codecs and databases raise whatever the first surprise causes
            raise DataError("this cannot be read", where=where, why=repr(error)[:200]) from None
        record = structure_record(structure, item.id, tags={name: tag for name, tag in tags.items() if tag is not None})
        return replace(record, labels={name: value for name, value in labels.items() if value is not None})

    def _items(self) -> Iterator[Item]:
        if self.path.is_dir():
            for name in files_below(self.path):
                if self._wanted(name):
                    yield from self._of_file(name, name)
        elif not self.path.exists():
            raise DataError("there is no such file or folder", where=self.path, do="check the path")
        elif not self.path.is_file():
            raise DataError("this is no regular file", where=self.path, do="check the path")
        elif not form(self.path.name) and Path(stem(self.path.name)).suffix.lower() in TABLES:
            raise DataError("this is a table", where=self.path, do="read its columns with the source 'table'")
        elif is_archive(self.path.name):
            yield from self._of_archive()
        else:
            yield from self._of_file("", self.path.name)

    def _wanted(self, name: str) -> bool:
        return fnmatchcase(name, self.files) if self.files else bool(form(name)) or is_archive(name)

    def _of_file(self, file: str, name: str) -> Iterator[Item]:
        path = self.path / file
        refused = refusal(path, self.path) or ("it is an archive in a folder" if is_archive(name) else "")
        if refused or (form(name) == "ase" and codec(name)):
            yield _item(name, {"file": file, "refused": refused or "it is a packed database"})
            return
        with path.open("rb") as raw:
            stream = unpacked(raw, name, path.stat().st_size)
            yield from _numbered(parts(stream, path, form(name), self.id_key), name, {"file": file}, _stamp(path))

    def _of_archive(self) -> Iterator[Item]:
        archive, stamp = Archive(self.path), _stamp(self.path)
        for member in archive.members():
            name = member.name.removeprefix("./")
            if is_hidden(name) or not self._wanted(name):
                continue
            ref = {"file": "", "member": [member.name, *(member.place or ())]}
            refused = member.refused or ("it is an archive in an archive" if is_archive(name) else "")
            if refused or form(name) == "ase":
                yield _item(name, {**ref, "refused": refused or "it is a database in an archive"})
                continue
            try:
                stream = archive.open(member.name, member.place)
            except DataError as error:
                yield _item(name, {**ref, "refused": str(error)})
                continue
            yield from _numbered(parts(stream, self.path, form(name), self.id_key), name, ref, stamp)

    def _structure(self, path: Path, item: Item) -> tuple[Structure, dict[str, Any]]:
        if _stamp(path) != item.stamp:
            raise DataError("the file has changed since it was listed", do="begin the build again")
        name, place = _name(item.ref) or path.name, item.ref.get("place")
        kind = form(name)
        if kind == "ase":
            found = row_structure(path, place[0], self.max_atoms)
        else:
            data = _bytes(path, item.stamp, item.ref.get("member"), place)
            if b"\0" in data:
                raise DataError("the file is no text", why="it is packed, or binary")
            # in a CIF, names of authors may be in any encoding; nothing else needs more than ASCII
            text = data.decode("utf-8", "replace")
            if kind not in ("json", "jsonl"):
                return parse_described(text, max_atoms=self.max_atoms, name=XYZ if kind == "xyz" else "")
            value = json.loads(text)
            found = (entry_structure if is_entry(value) else structure_of_json)(value, self.max_atoms)
        check(found[0], self.max_atoms, None)
        return found


def structure_record(structure: Structure, id: str, *, tags: Mapping[str, str] | None = None) -> Record:
    """Return a source record of one structure, tagged with its formula and chemical system."""
    composition = structure.composition
    described = {"formula": composition.reduced_formula, "chemical_system": composition.chemical_system}
    return Record(id=id, structure=structure, tags={**described, **(tags or {})})


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def _name(ref: Mapping[str, Any]) -> str:
    """Return the name of a file or of an archive's member, empty where the path itself is the file."""
    return str(ref["member"][0] if "member" in ref else ref["file"])


def _numbered(found: Iterator[Part], name: str, ref: Mapping[str, Any], stamp: str) -> Iterator[Item]:
    """Turn the parts of a file into items; the only part of a file has the file's own id."""
    ahead = list(islice(found, 2))
    for part in chain(ahead, found):
        entry = dict(ref)
        if part.place is not None:
            entry["place"] = list(part.place) if isinstance(part.place, tuple) else [part.place]
        if part.refused:
            entry["refused"] = part.refused
        number = "" if len(ahead) == 1 else part.name
        yield _item(name, entry, number, own=part.name if part.own else "", stamp=stamp)


def _item(name: str, ref: dict[str, Any], number: str = "", *, own: str = "", stamp: str = "") -> Item:
    id = own or "/".join(filter(None, [stem(name), number]))
    # a file's name may be no valid text, a JSON key may hold half a character
    return Item(id=id.encode("utf-8", "backslashreplace").decode(), ref=ref, stamp=stamp)


@lru_cache(maxsize=2)
def _archive(path: str, stamp: str) -> Archive:
    return Archive(Path(path))


@lru_cache(maxsize=4)
def _stream(path: str, stamp: str, member: tuple[Any, ...]) -> BinaryIO:
    """Open a packed file or an archive's member, kept open so that reading on does not begin from the start."""
    if not member:
        return unpacked(Path(path).open("rb"), path, Path(path).stat().st_size)
    name, *place = member
    return _archive(path, stamp).open(name, (place[0], place[1]) if place else None)


def _bytes(path: Path, stamp: str, member: list[Any] | None, place: list[int] | None) -> bytes:
    """Return the bytes of a file, of an archive's member, or of a part of either."""
    start, size = place or (0, MAX_BYTES + 1)
    if place and size > MAX_BYTES:
        raise DataError(f"the structure takes more than {MAX_BYTES // 10**6} MB")
    if member is None and not codec(path.name):
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
    else:
        with _READING:
            stream = _stream(str(path), stamp, tuple(member or ()))
            stream.seek(start)
            data = stream.read(size)
    if len(data) > MAX_BYTES:
        raise DataError(f"the file has more than {MAX_BYTES // 10**6} MB", do="give one structure a file")
    return data


def _label(info: Mapping[str, Any], source: str | LabelKey, atoms: int) -> float | np.ndarray | None:
    """Return a label, a number or a tensor, None where it is unknown."""
    key = source if isinstance(source, str) else source.key
    per_atom = isinstance(source, LabelKey) and source.per_atom
    if isinstance(source, LabelKey) and source.shape:
        array = _tensor(lookup(info, key), key, source.shape)
        return None if array is None else array / (atoms if per_atom else 1)
    value = _scalar(info, key)
    if value is None:
        return None
    if isinstance(value, str) or math.isinf(value):
        raise DataError(f"'{key}' is {value!r:.60}, no finite number", do="correct it, or leave the key out")
    if math.isnan(value):
        return None
    return value / atoms if per_atom else float(value)


def _tensor(values: Any, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if values is None:
        return None
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"'{key}' is no array of numbers", why=str(error)) from None
    # frames hold 9 numbers in a line
    array = array.reshape(shape) if array.shape == (math.prod(shape),) else array
    if array.shape != shape or not np.isfinite(array).all():
        found = "holds a number that is not finite" if array.shape == shape else f"has the shape {array.shape}"
        raise DataError(f"'{key}' {found}", why=f"expected {shape}", do="correct it, or leave the key out")
    return array


def _tag(info: Mapping[str, Any], key: str) -> str | None:
    value = _scalar(info, key)
    return None if value is None else str(value)


def _scalar(info: Mapping[str, Any], key: str) -> str | float | None:
    """Return one text or number, None where the key is missing or null."""
    value = lookup(info, key)
    value = getattr(value, "item", lambda: value)()  # of numpy, what the comment line of a frame holds
    if value is not None and not isinstance(value, str | int | float):
        raise DataError(f"'{key}' is {type(value).__name__}, no single number or text", do="name another key")
    return value
