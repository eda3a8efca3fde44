"""Random access to a data set: mmap, an index, and a digest check of every member that is read."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shards.codecs import META, decode_arrays, decode_json, digest, member_name
from shards.errors import DataError, suggest
from shards.index import ABSENT, Index, read_index
from shards.manifest import MANIFEST, Manifest, ShardEntry, read_manifest
from shards.schema import ModalitySpec, Sample
from shards.sealed import sha256, verify


class Dataset:
    """A folder of shards, read by position or by id.

    Parameters
    ----------
    folder : Path or str
        A folder that `shards.build` published.
    modalities : sequence of str, optional
        Read these alone; the bytes of the others are not touched. Default: all.
    """

    def __init__(self, folder: Path | str, modalities: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        verify(self.folder, error=DataError, only=(MANIFEST,))
        self.modalities = self._select(modalities)
        self._indices = [self._open_index(entry) for entry in self.manifest.shards]
        self.ids = [sample_id for index in self._indices for sample_id in index.ids]
        self.shard_sizes = [entry.samples for entry in self.manifest.shards]
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self._positions = {sample_id: position for position, sample_id in enumerate(self.ids)}
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Sample:
        """Read the sample at ``position``, verifying each member."""
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        row = position - int(self._starts[shard])
        meta = decode_json(self._member(shard, row, META) or b"", where=self._where(shard, row, META))
        arrays = {}
        for name in self.modalities:
            data = self._member(shard, row, name) if self.modalities[name].kind != "text" else None
            if data is not None:
                arrays[name] = decode_arrays(data, where=self._where(shard, row, name))
        return Sample(
            id=meta["id"],
            arrays=arrays,
            text={name: text for name, text in meta["text"].items() if name in self.modalities},
            labels=meta["labels"],
            tags=meta["tags"],
            group=meta["group"],
        )

    def position(self, sample_id: str) -> int:
        """Return where a sample stands, or raise `DataError` with a suggestion."""
        if sample_id not in self._positions:
            raise DataError(f"there is no sample '{sample_id}'", where=self.folder, why=suggest(sample_id, self.ids))
        return self._positions[sample_id]

    def positions(self, split: str, part: str) -> np.ndarray:
        """Return the positions of one part of a split, ascending."""
        parts = self.manifest.split(split).ids
        if part not in parts:
            raise DataError(f"split '{split}' has no part '{part}'", why=suggest(part, parts))
        return np.sort([self._positions[sample_id] for sample_id in parts[part]]).astype(np.int64)

    def presence(self, modality: str) -> np.ndarray:
        """Return (N,) bool: which samples have an array modality, by the indices alone."""
        columns = [index.size[:, index.parts.index(modality)] for index in self._indices]
        return np.not_equal(np.concatenate(columns), ABSENT) if columns else np.zeros(0, dtype=bool)

    def expected_members(self, shard: int) -> list[str]:
        """Return the names of the tar members of a shard, in order, as its index gives them."""
        index = self._indices[shard]
        return [
            member_name(sample_id, part)
            for sample_id, sizes in zip(index.ids, index.size, strict=True)
            for part, size in zip(index.parts, sizes, strict=True)
            if size != ABSENT
        ]

    def _select(self, names: Sequence[str] | None) -> dict[str, ModalitySpec]:
        known = self.manifest.modalities
        for name in names or ():
            if name not in known:
                raise DataError(f"the data set has no modality '{name}'", where=self.folder, why=suggest(name, known))
        return {name: known[name] for name in (known if names is None else names)}

    def _open_index(self, entry: ShardEntry) -> Index:
        path = self.folder / entry.index
        if path.is_file() and sha256(path) != entry.index_sha256:
            raise DataError("the index of a shard is damaged", where=path, why="its sha256 is not the manifest's")
        index = read_index(path)
        if len(index.ids) != entry.samples:
            raise DataError("the index of a shard contradicts the manifest", where=path)
        return index

    def _member(self, shard: int, row: int, part: str) -> bytes | None:
        index = self._indices[shard]
        column = index.parts.index(part)
        size, offset = int(index.size[row, column]), int(index.offset[row, column])
        if size == ABSENT:
            return None
        data = self._map(shard)[offset : offset + size]
        if digest(data) != index.digest[row, column].tobytes():
            raise DataError(
                "a member of a shard is damaged",
                where=self._where(shard, row, part),
                why="its digest is not the index's",
                do=f"matloom shards verify {self.folder}",
            )
        return data

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            entry = self.manifest.shards[shard]
            path = self.folder / entry.file
            if not path.is_file() or path.stat().st_size != entry.bytes:
                found = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
                raise DataError("a shard is missing or truncated", where=path, why=f"{found}, not {entry.bytes}")
            with path.open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]

    def _where(self, shard: int, row: int, part: str) -> str:
        return f"{self.folder / self.manifest.shards[shard].file}: {self._indices[shard].ids[row]!r}, {part}"
