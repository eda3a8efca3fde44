"""Shards of other projects in the WebDataset format: indexed and checked, then read by offset.

The format is a tar whose members ``<key>.<ending>`` lie together by key. What an ending means is said by the recipe;
an ending that it does not name is refused, and one that could carry a pickle is never opened by any recipe.
"""

from __future__ import annotations

import glob
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from shards.codecs import decode_arrays, decode_json
from shards.errors import DataError, suggest
from shards.formats.arrays import gunzip, parse_npy, parse_npz
from shards.formats.listing import lookup
from shards.formats.structure import parse_structure
from shards.formats.tar import Member, read_member, walk
from shards.schema import Strict
from shards.sources.base import SOURCES, Item, RawDos, Record, Source
from shards.sources.images import decode_image
from shards.sources.pymatgen_json import document, parse_dos
from shards.sources.structures import structure_record

PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "joblib", "dill", "cloudpickle", "ckpt")
TEXTS = ("structure", "text", "smiles", "group")
KINDS = (*TEXTS, "dos", "dos.energy_ev", "dos.states_per_ev", "charge_density", "images")
NAMED = re.compile(r"(labels|tags|columns|arrays)\.\w+|arrays\.\*")


class JsonFields(Strict):
    """What the fields of a JSON member mean; dots lead into nested objects.

    Attributes
    ----------
    labels, tags, columns : dict of str to str
        Name in the record to the field in the JSON. A field that is null or NaN is an unknown one.
    text, smiles, structure, group : str
        Field that holds it; empty where none does.
    """

    labels: dict[str, str] = {}
    tags: dict[str, str] = {}
    columns: dict[str, str] = {}
    text: str = ""
    smiles: str = ""
    structure: str = ""
    group: str = ""


@SOURCES.register("webdataset")
class WebdatasetSource(Source):
    """Tars of another project, as ``webdataset.TarWriter`` and plain ``tar`` write them.

    Attributes
    ----------
    path : str
        A tar, a folder of them, or a pattern (``data/*.tar``).
    members : dict
        Ending of a member to what it holds: ``structure``, ``dos``, ``dos.energy_ev`` and
        ``dos.states_per_ev``, ``charge_density``, ``text``, ``smiles``, ``images``, ``group``, ``labels.NAME``,
        ``tags.NAME``, ``columns.NAME``, ``arrays.NAME``, ``arrays.*`` (every array of an ``.npz`` or
        ``.safetensors``), or a table of JSON fields (see `JsonFields`). Images of an ending with ``*``
        (``"*.png"``) are taken in the order of the tar.
    ignore : tuple of str
        Endings, or names of members, that are left unread, as patterns of a shell.
    key_split : str
        Where a name is divided into key and ending: at the ``first`` dot (webdataset's rule), at the ``last``, before
        the longest ending of ``members``, or where a regular expression with groups ``key`` and ``ending`` says so.
    ids : str
        Whether the id is the ``key``, or ``shard`` and key where keys repeat from tar to tar.
    dos_per : str
        Whether states are per ``cell`` (which needs a structure) or per ``atom``.
    dos_zero_ev : float
        Energy, on the members' scale, that becomes 0 eV.
    max_atoms, max_members, max_sample_bytes : int
        Larger structures and samples (all members, unpacked) are quarantined; tars with more members are refused.
    """

    kind: Literal["webdataset"] = "webdataset"
    path: str
    members: dict[str, str | JsonFields]
    ignore: tuple[str, ...] = ()
    key_split: str = "first"
    ids: Literal["key", "shard"] = "key"
    dos_per: Literal["cell", "atom"] = "cell"
    dos_zero_ev: float = 0.0
    max_atoms: int = Field(1000, ge=1)
    max_members: int = Field(50_000, ge=1)
    max_sample_bytes: int = Field(128 << 20, ge=1)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that records may have."""
        tables = [target.labels for target in self.members.values() if isinstance(target, JsonFields)]
        single = [target for target in self.members.values() if isinstance(target, str)]
        named = [target.removeprefix("labels.") for target in single if target.startswith("labels.")]
        return (*named, *(label for table in tables for label in table))

    @model_validator(mode="after")
    def _known(self) -> WebdatasetSource:
        if not self.members:
            raise ValueError("name at least one member")
        for ending, target in self.members.items():
            if _pickled(ending):
                raise ValueError(f"'{ending}' can carry a pickle, which runs code when it is opened: it is never read")
            if isinstance(target, str) and target not in KINDS and not NAMED.fullmatch(target):
                known = (*KINDS, "labels.NAME", "tags.NAME", "columns.NAME", "arrays.NAME", "arrays.*")
                raise ValueError(f"'{ending}' cannot be '{target}': {suggest(target, known)}")
        if self.key_split not in ("first", "last", "members"):
            try:
                groups = set(re.compile(self.key_split).groupindex)
            except re.error as error:
                raise ValueError(f"key_split is no expression: {error}") from None
            if groups != {"key", "ending"}:
                raise ValueError("key_split is 'first', 'last', 'members' or has the groups (?P<key>) and (?P<ending>)")
        return self

    def items(self) -> Iterable[Item]:
        """List the samples of all tars, in order of the tars' names; every header is read and checked."""
        seen: dict[str, Path] = {}
        for path in self._tars():
            status = path.stat()
            for key, parts in self._samples(path):
                id = key if self.ids == "key" else f"{path.stem}/{key}"
                if id in seen:
                    raise DataError(
                        f"the key '{id}' is in two tars", where=f"{seen[id]} and {path}", do="set ids = 'shard'"
                    )
                seen[id] = path
                stamp = f"{status.st_size}-{status.st_mtime_ns}-{parts[0][1]}"
                yield Item(id=id, ref={"tar": str(path), "parts": parts}, stamp=stamp)

    def read(self, item: Item) -> Record:
        """Read one sample's members."""
        parts = _Parts(self, room=self.max_sample_bytes)
        for ending, offset, size in item.ref["parts"]:
            where = f"{item.ref['tar']}: {item.id}.{ending}"
            parts.spend(size, where)
            data = read_member(Path(item.ref["tar"]), offset, size)
            if ending.endswith(".gz"):
                data = gunzip(data, where=where, max_bytes=parts.room)
                parts.spend(len(data), where)
            parts.take(ending.removesuffix(".gz"), self._target(ending), data, where)
        return parts.record(item.id)

    def _tars(self) -> list[Path]:
        """Return the tars in order of their names."""
        path = Path(self.path)
        if path.is_dir():
            found = sorted(path.glob("*.tar"))
        else:
            found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(self.path))]
        if not found:
            raise DataError("there is no tar", where=self.path, do="give a tar, a folder of them or a pattern")
        return found

    def _samples(self, path: Path) -> Iterator[tuple[str, list[list[Any]]]]:
        """Yield key and parts (ending, offset, size) of each sample of a tar."""
        done: set[str] = set()
        current, parts = "", list[list[Any]]()
        endings: set[str] = set()
        checked: set[str] = set()
        for member in walk(path, max_members=self.max_members):
            if self._ignored(member.name):
                continue
            key, ending = self._split(member, path)
            if key != current:
                if parts:
                    yield current, parts
                if key in done:
                    raise DataError(
                        f"the members of '{key}' do not lie together",
                        where=f"{path}: {member.name}",
                        why="other members lie between them, so that a reader of streams would see two samples",
                        do="sort the members by name and pack again",
                    )
                done.add(key)
                current, parts, endings = key, [], set()
            if ending in endings:
                raise DataError("a member is there twice", where=f"{path}: {member.name}", do="pack again")
            endings.add(ending)
            if self._ignored(ending):
                continue
            if ending not in checked:
                self._check_ending(ending, f"{path}: {member.name}")
                checked.add(ending)
            parts.append([ending, member.offset, member.size])
        if parts:
            yield current, parts

    def _split(self, member: Member, path: Path) -> tuple[str, str]:
        """Divide a name into key and ending."""
        folder, slash, base = member.name.rpartition("/")
        ending: str | None = None
        if self.key_split == "first":
            key, _, ending = base.partition(".")
        elif self.key_split == "last":
            key, _, ending = base.rpartition(".")
        elif self.key_split == "members":
            known = [known for known in self.members if "*" not in known and base.endswith(f".{known}")]
            ending = max(known, key=len, default=base.partition(".")[2])
            key = base.removesuffix(f".{ending}")
        else:
            match = re.fullmatch(self.key_split, base)
            key, ending = (match["key"], match["ending"]) if match else ("", None)
        if not key or not ending:
            raise DataError(
                "a member's name has no key and ending",
                where=f"{path}: {member.name}",
                do="name members KEY.ENDING, or set key_split",
            )
        return f"{folder}{slash}{key}", ending

    def _ignored(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)

    def _check_ending(self, ending: str, where: str) -> None:
        if _pickled(ending):
            raise DataError(
                "a member can carry a pickle, which runs code when it is opened",
                where=where,
                do=f"leave it unread with ignore = ['{ending}']",
            )
        if self._target(ending) is None:
            raise DataError(
                f"nothing says what members with the ending '{ending}' hold",
                where=where,
                why=suggest(ending, self.members),
                do=f"name it in [source.members], or ignore = ['{ending}']",
            )

    def _target(self, ending: str) -> str | JsonFields | None:
        """Return what an ending means, or None."""
        for name in (ending, ending.removesuffix(".gz")):
            if name in self.members:
                return self.members[name]
        patterns = [pattern for pattern in self.members if "*" in pattern and fnmatchcase(ending, pattern)]
        return self.members[patterns[0]] if patterns else None


def _pickled(ending: str) -> bool:
    """Whether any part of an ending (``x.pkl.gz``) is one that pickles have."""
    return any(part.lower() in PICKLES for part in ending.split("."))


@dataclass
class _Parts:
    """What the members of one sample held so far."""

    source: WebdatasetSource
    room: int
    values: dict[str, Any] = field(default_factory=dict)
    images: list[np.ndarray] = field(default_factory=list)
    named: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"labels": {}, "tags": {}, "columns": {}, "arrays": {}}
    )

    def spend(self, size: int, where: str) -> None:
        """Count bytes of the sample; raise `DataError` where it has more than it may."""
        self.room -= size
        if self.room < 0:
            raise DataError("the sample is too large", where=where, do="raise max_sample_bytes if it is meant so")

    def take(self, ending: str, target: str | JsonFields | None, data: bytes, where: str) -> None:
        """Decode one member."""
        if isinstance(target, JsonFields):
            self._fields(target, decode_json(data, where=where), where)
            return
        assert target is not None
        group, _, name = target.partition(".")
        if target == "images":
            self.images.append(decode_image(io.BytesIO(data), where=where))
        elif group == "arrays" or target in ("charge_density", "dos.energy_ev", "dos.states_per_ev"):
            self._arrays(group, name, ending, data, where)
        elif target == "dos":
            self._put("dos", self._dos(ending, data, where), where)
        else:
            text = _text(data, where)
            value: Any = text if target in TEXTS or group == "tags" else _value(text.strip(), where, group)
            self._put(target, value, where)

    def _put(self, target: str, value: Any, where: str) -> None:
        """Keep a value under its place in the record."""
        group, _, name = target.partition(".")
        place, key = (self.named[group], name) if group in self.named else (self.values, target)
        if key in place:
            raise DataError(f"two members of the sample hold '{target}'", where=where)
        if value is not None:
            place[key] = value

    def _arrays(self, group: str, name: str, ending: str, data: bytes, where: str) -> None:
        last = ending.rpartition(".")[2]
        if last == "npy":
            found = {name or group: parse_npy(data, where=where)}
        elif last == "npz":
            found = parse_npz(data, where=where, max_bytes=self.room)
            self.spend(sum(array.nbytes for array in found.values()), where)
        elif last == "safetensors":
            found = decode_arrays(data, where=where)
        else:
            raise DataError(f"members with the ending '{last}' are no arrays", where=where, do="npy, npz, safetensors")
        if name == "*":
            for key, array in found.items():
                self._put(f"arrays.{key}", array, where)
        elif len(found) != 1:
            raise DataError(f"the member holds {len(found)} arrays", where=where, do="call them 'arrays.*'")
        else:
            self._put(f"{group}.{name}" if name else group, next(iter(found.values())), where)

    def _dos(self, ending: str, data: bytes, where: str) -> RawDos:
        """Read a density of states: pymatgen's JSON, or an array (2, n) of energies and states."""
        if ending.rpartition(".")[2] != "npy":
            return parse_dos(document(decode_json(data, where=where)), atoms=None, where=where)
        array = parse_npy(data, where=where)
        if array.ndim != 2 or len(array) != 2:
            raise DataError(f"the density of states has shape {array.shape}, not (2, n)", where=where)
        return self._raw_dos(array[0], array[1])

    def _raw_dos(self, energy: np.ndarray, states: np.ndarray) -> RawDos:
        return RawDos(energy_ev=energy, states_per_ev=states, zero_ev=self.source.dos_zero_ev, atoms=0)

    def _fields(self, fields: JsonFields, table: Mapping[str, Any], where: str) -> None:
        """Take the fields of a JSON member."""
        for group in ("labels", "tags", "columns"):
            for name, path in getattr(fields, group).items():
                value = _value(lookup(table, path), f"{where}, {path}", group)
                self._put(f"{group}.{name}", value, where)
        for target in TEXTS:
            path = getattr(fields, target)
            value = lookup(table, path) if path else None
            if value is not None:
                self._put(target, json.dumps(value) if isinstance(value, dict) else str(value), where)

    def record(self, id: str) -> Record:
        """Return the sample as a record."""
        values, structure = self.values, None
        if "structure" in values:
            structure = parse_structure(values["structure"], max_atoms=self.source.max_atoms, where=id)
        dos = values.get("dos")
        if "dos.states_per_ev" in values:
            if "dos.energy_ev" not in values:
                raise DataError("the density of states has no energies", where=id)
            dos = self._raw_dos(values["dos.energy_ev"], values["dos.states_per_ev"])
        if dos is not None and dos.atoms == 0:
            if self.source.dos_per == "cell" and structure is None:
                raise DataError(
                    "the states are per cell, and there is no structure to count its atoms",
                    where=id,
                    do="set dos_per = 'atom', or name the structure's member",
                )
            atoms = 1 if structure is None or self.source.dos_per == "atom" else len(structure)
            dos = RawDos(energy_ev=dos.energy_ev, states_per_ev=dos.states_per_ev, zero_ev=dos.zero_ev, atoms=atoms)
        tags = structure_record(structure, id).tags if structure is not None else {}
        return Record(
            id=id,
            structure=structure,
            dos=dos,
            charge_density=values.get("charge_density"),
            text=values.get("text"),
            smiles=values.get("smiles"),
            images=tuple(self.images),
            columns=self.named["columns"],
            arrays=self.named["arrays"],
            labels=self.named["labels"],
            tags=tags | self.named["tags"],
            group=(values.get("group") or "").strip(),
        )


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError("the member is no text in UTF-8", where=where) from None


def _value(value: Any, where: str, group: str) -> float | str | None:
    """Return a label (a number), a column (a number or a category) or a tag (a text); None where it is unknown."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if group == "tags":
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        if group == "columns" and isinstance(value, str):
            return value
        raise DataError(f"'{str(value)[:60]}' is no number", where=where) from None
    return None if math.isnan(number) else number
