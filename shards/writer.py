"""Writing shards: samples in, plain WebDataset tars with an index beside each.

The bytes depend on the samples alone: no time, user or path enters them.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shards.codecs import DIGEST_BYTES, META, digest, encode_arrays, encode_json, member_name
from shards.errors import DataError
from shards.index import ABSENT, HEADER_BYTES, INDEX_SUFFIX, META_BYTES, Columns, Index, ragged_lengths
from shards.manifest import ShardEntry
from shards.schema import ModalitySpec, Sample
from shards.sealed import sha256

BLOCK = 512


class ShardWriter:
    """Write samples into the shards of a folder.

    Parameters
    ----------
    folder : Path
        An existing folder.
    modalities : mapping of str to ModalitySpec
        Every sample is checked against it.
    name : str, optional
        Name of the first shard without its suffix; those after it are ``name-1``, ``name-2``, ... By default
        the shards are ``shard-000000``, ``shard-000001``, ...
    shard_bytes, shard_samples : int
        A shard is closed once it reaches either, or once its ids take half of what the header of an index may.
    """

    def __init__(
        self,
        folder: Path,
        modalities: Mapping[str, ModalitySpec],
        *,
        name: str | None = None,
        shard_bytes: int = 256 << 20,
        shard_samples: int = 1024,
    ) -> None:
        self.folder, self.modalities, self.name = folder, dict(modalities), name
        self.shard_bytes, self.shard_samples = shard_bytes, shard_samples
        self.columns = Columns.of(self.modalities)
        self.entries: list[ShardEntry] = []
        self._seen: set[str] = set()
        self._tar: tarfile.TarFile | None = None

    def write(self, sample: Sample) -> None:
        """Append one sample, or raise `DataError` and leave the shard as it was.

        Raises
        ------
        DataError
            For an id that was written before, a value that contradicts the schema, or texts that are too long.
        """
        if sample.id in self._seen:
            raise DataError("two samples have the same id", where=sample.id, do="make the ids unique")
        unknown = sample.modalities - set(self.modalities)
        if unknown:
            raise DataError(f"the schema has no modality {sorted(unknown)}", where=sample.id)
        for name in sample.modalities:
            value = sample.value(name)
            assert value is not None
            self.modalities[name].check(value, where=sample.id)
        members = {META: encode_json(_meta(sample))}
        if len(members[META]) > META_BYTES:
            why = f"{len(members[META])} bytes, of at most {META_BYTES}"
            raise DataError("the texts, labels and tags of a sample take too much", where=sample.id, why=why)
        members |= {name: encode_arrays(arrays) for name, arrays in sample.arrays.items()}
        names = {part: member_name(sample.id, part) for part in members}
        self._seen.add(sample.id)
        self._append(sample, members, names)

    def close(self) -> list[ShardEntry]:
        """Finish the last shard and return the entries of all of them."""
        self._finish()
        return self.entries

    def _append(self, sample: Sample, members: Mapping[str, bytes], names: Mapping[str, str]) -> None:
        tar = self._tar or self._start()
        parts, axes, texts = self.columns.parts, self.columns.axes, self.columns.texts
        offset = np.zeros(len(parts), np.int64)
        size = np.full(len(parts), ABSENT, np.int64)
        digests = np.zeros((len(parts), DIGEST_BYTES), np.uint8)
        for column, part in enumerate(parts):
            if part not in members:
                continue
            data = members[part]
            info = tarfile.TarInfo(names[part])
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            offset[column] = tar.offset - -(-len(data) // BLOCK) * BLOCK
            size[column] = len(data)
            digests[column] = np.frombuffer(digest(data), np.uint8)
        lengths = ragged_lengths(sample, self.modalities)
        self._ids.append(sample.id)
        # a JSON text within that of the header
        self._id_bytes += len(json.dumps(json.dumps(sample.id)))
        length = np.array([lengths.get(axis, ABSENT) for axis in axes], np.int32)
        text = np.array([name in sample.text for name in texts], bool)
        self._rows.append((offset, size, digests, length, text))
        full = tar.offset >= self.shard_bytes or len(self._ids) >= self.shard_samples
        if full or self._id_bytes > HEADER_BYTES // 2:
            self._finish()

    def _start(self) -> tarfile.TarFile:
        self._ids: list[str] = []
        self._id_bytes = 0
        self._rows: list[tuple[np.ndarray, ...]] = []
        number = len(self.entries)
        name = f"shard-{number:06d}"
        if self.name is not None:
            name = f"{self.name}-{number}" if number else self.name
        self._path = self.folder / f"{name}.tar"
        self._tar = tarfile.open(self._path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  closed in _finish
        return self._tar

    def _finish(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        columns = [np.stack(column) for column in zip(*self._rows, strict=True)]
        index_path = self._path.with_suffix(INDEX_SUFFIX)
        Index(self._ids, self.columns, *columns).save(index_path)
        self.entries.append(
            ShardEntry(
                file=self._path.name,
                sha256=sha256(self._path),
                bytes=self._path.stat().st_size,
                index=index_path.name,
                index_sha256=sha256(index_path),
                samples=len(self._ids),
            )
        )


def _meta(sample: Sample) -> dict[str, object]:
    return {
        "id": sample.id,
        "text": sample.text,
        "labels": sample.labels,
        "tags": sample.tags,
        "group": sample.group or sample.id,
    }
