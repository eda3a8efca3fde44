"""One data set by itself: indices, and the members of each sample, verified whenever they are read."""

from __future__ import annotations

import copy
import hashlib
from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from shards.codecs import META, decode_arrays, decode_json, digest, member_name
from shards.errors import DataError
from shards.index import ABSENT, Columns, Index, read_index
from shards.manifest import MANIFEST, ShardEntry, manifest_bytes, parse_manifest
from shards.schema import Sample
from shards.sealed import verify
from shards.store import Store


class DamagedMemberError(DataError):
    """A member whose bytes have not the digest of the index."""


class Layer:
    """The shards of one folder.

    Parameters
    ----------
    store : Store
        Where the bytes come from.

    Attributes
    ----------
    ids : list of str
        N sample ids in the order of the shards.
    positions : dict of str to int
        Inverse of ``ids``.
    manifest_sha256 : str
        What an overlay of this data set names it by.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        data = manifest_bytes(store.folder)
        self.manifest = parse_manifest(data, where=store.folder / MANIFEST)
        self.manifest_sha256 = verify(store.folder, error=DataError, only=(MANIFEST,))[MANIFEST]
        if hashlib.sha256(data).hexdigest() != self.manifest_sha256:
            raise DataError("the data set was replaced while it was opened", where=store.location, do="open it again")
        self.columns = Columns.of(self.manifest.modalities)
        self.indices = [self._open_index(entry) for entry in self.manifest.shards]
        self.ids = [sample_id for index in self.indices for sample_id in index.ids]
        self.positions = {sample_id: position for position, sample_id in enumerate(self.ids)}
        if len(self.positions) != len(self.ids):
            raise DataError("two samples of a data set have the same id", where=store.location)
        self._starts = [0, *accumulate(entry.samples for entry in self.manifest.shards)]
        self._choose(self.manifest.modalities)

    def select(self, modalities: Collection[str]) -> Layer:
        """Return a layer over the same files that reads those of ``modalities`` that it has."""
        chosen = copy.copy(self)
        chosen._choose(modalities)
        return chosen

    def read(self, position: int) -> Sample:
        """Read the sample at ``position``, verifying each member."""
        shard = bisect_right(self._starts, position) - 1
        row = position - self._starts[shard]
        try:
            members = self._members(shard, row)
        except DamagedMemberError:
            if not self.store.renew(self.manifest.shards[shard]):
                raise
            members = self._members(shard, row)
        part, arrays = META, {}
        try:
            meta = decode_json(members.pop(META), where="")
            for part, member in members.items():
                arrays[part] = decode_arrays(member, where="")
        except DataError as error:
            raise DataError(error.what, where=self._where(shard, row, part), why=error.why) from None
        try:
            texts, labels, tags, group = meta["text"], meta["labels"], meta["tags"], meta["group"]
            text = {name: texts[name] for name in self._texts if name in texts}
            if meta["id"] != self.indices[shard].ids[row]:
                raise ValueError("its id is not the index's")
        except (KeyError, TypeError, ValueError) as error:
            where = self._where(shard, row, META)
            raise DataError("the metadata of a sample are damaged", where=where, why=repr(error)) from None
        return Sample(id=meta["id"], arrays=arrays, text=text, labels=labels, tags=tags, group=group)

    def presence(self, modality: str) -> np.ndarray:
        """Return (N,) bool: which samples have a modality."""
        if modality in self.columns.texts:
            column = self.columns.texts.index(modality)
            return _joined([index.text[:, column] for index in self.indices], bool)
        column = self.columns.parts.index(modality)
        return _joined([index.size[:, column] != ABSENT for index in self.indices], bool)

    def lengths(self, axis: str) -> np.ndarray:
        """Return (N,) int64: the length of a ragged axis (``modality.axis``), 0 where the modality is absent."""
        column = self.columns.axes.index(axis)
        return np.maximum(_joined([index.length[:, column] for index in self.indices], np.int64), 0)

    def prefetch(self, positions: np.ndarray) -> None:
        """Start to fetch the shards that hold samples, in the order in which these will be read."""
        order = np.searchsorted(self._starts, positions, side="right") - 1
        self.store.prefetch(self.manifest.shards, order)

    def sizes(self, part: str) -> np.ndarray:
        """Return (N,) int64: the bytes of a member in each sample, 0 where it is absent."""
        column = self.columns.parts.index(part)
        return np.maximum(_joined([index.size[:, column] for index in self.indices], np.int64), 0)

    def digests(self, part: str) -> np.ndarray:
        """Return (N,) of 16 bytes each: the digest of a member in each sample, zeros where it is absent."""
        column = self.columns.parts.index(part)
        digests = [np.ascontiguousarray(index.digest[:, column]) for index in self.indices]
        return _joined([rows.view("V16")[:, 0] for rows in digests], "V16")

    def expected_members(self, shard: int) -> list[str]:
        """Return the names of the tar members of a shard, in order, as its index gives them."""
        index = self.indices[shard]
        return [
            member_name(sample_id, part)
            for sample_id, sizes in zip(index.ids, index.size, strict=True)
            for part, size in zip(index.columns.parts, sizes, strict=True)
            if size != ABSENT
        ]

    def _choose(self, modalities: Collection[str]) -> None:
        wanted = {META, *modalities}
        self._parts = [(part, column) for column, part in enumerate(self.columns.parts) if part in wanted]
        self._texts = [name for name in self.columns.texts if name in wanted]

    def _open_index(self, entry: ShardEntry) -> Index:
        path = self.store.folder / entry.index
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError("the index of a shard is missing", where=path, why=error.strerror) from None
        if hashlib.sha256(data).hexdigest() != entry.index_sha256:
            raise DataError("the index of a shard is damaged", where=path, why="its sha256 is not the manifest's")
        index = read_index(data, self.manifest.modalities, shard_bytes=entry.bytes, where=path)
        if len(index.ids) != entry.samples:
            raise DataError("the index of a shard contradicts the manifest", where=path)
        return index

    def _members(self, shard: int, row: int) -> dict[str, memoryview]:
        """Return the members of a sample that are wanted and present."""
        entry, (offsets, sizes, digests) = self.manifest.shards[shard], self.indices[shard].row(row)
        view, begin = self.store.shard(entry), 0
        if view is None:
            view, begin = self._span(entry, offsets, sizes, digests)
        members = {}
        for part, column in self._parts:
            size = sizes[column]
            if size != ABSENT:
                start = offsets[column] - begin
                members[part] = member = view[start : start + size]
                if digest(member) != digests[column]:
                    raise self._damaged(shard, row, part)
        return members

    def _span(
        self, entry: ShardEntry, offsets: Sequence[int], sizes: Sequence[int], digests: Sequence[bytes]
    ) -> tuple[memoryview, int]:
        """Return the part of a shard from the first to the last member that is wanted, and where it begins."""
        columns = [column for _, column in self._parts if sizes[column] != ABSENT]
        begin = min(offsets[column] for column in columns)
        end = max(offsets[column] + sizes[column] for column in columns)

        def intact(data: bytes) -> bool:
            view = memoryview(data)
            return all(
                digest(view[offsets[column] - begin : offsets[column] - begin + sizes[column]]) == digests[column]
                for column in columns
            )

        return memoryview(self.store.part(entry, begin, end, intact)), begin

    def _damaged(self, shard: int, row: int, part: str) -> DamagedMemberError:
        return DamagedMemberError(
            "a member of a shard is damaged",
            where=self._where(shard, row, part),
            why="its digest is not the index's",
            do=f"matloom shards verify {self.store.location}",
        )

    def _where(self, shard: int, row: int, part: str) -> str:
        return f"{self.store.location}/{self.manifest.shards[shard].file}: {self.indices[shard].ids[row]!r}, {part}"


def _joined(columns: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *columns]).astype(dtype, copy=False)
