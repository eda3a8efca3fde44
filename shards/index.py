"""The index beside a shard: where each member lies, how long it is, its digest, and what the sample holds.

One safetensors file a shard. Rows are samples, columns are parts (``meta``, then the modalities that
have arrays, in alphabetical order); a size of -1 says that the sample lacks the modality. The lengths
of the ragged axes and the texts that a sample has stand here too, so that batches can be planned and
coverage counted without a look at the samples.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from shards.codecs import DIGEST_BYTES, META, decode_arrays, decode_metadata
from shards.errors import DataError
from shards.schema import ModalitySpec, Sample

ABSENT = -1
INDEX_SUFFIX = ".index.safetensors"
# of the header, which holds the ids; the writer starts another shard before that
HEADER_BYTES = 2 << 20
# of the member that holds labels, tags and texts
META_BYTES = 2 << 20


@dataclass(frozen=True)
class Columns:
    """Names of an index's columns, a function of the schema.

    Attributes
    ----------
    parts : tuple of str
        P members that a sample may have: ``meta``, then the modalities that have arrays.
    axes : tuple of str
        A ragged axes as ``modality.axis``.
    texts : tuple of str
        T text modalities.
    """

    parts: tuple[str, ...]
    axes: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, modalities: Mapping[str, ModalitySpec]) -> Columns:
        """Return the columns of a schema, in alphabetical order."""
        arrays = sorted(name for name, spec in modalities.items() if spec.kind != "text")
        return cls(
            parts=(META, *arrays),
            axes=tuple(f"{name}.{axis}" for name in arrays for axis in ragged_axes(modalities[name])),
            texts=tuple(sorted(set(modalities) - set(arrays))),
        )


def ragged_axes(spec: ModalitySpec) -> list[str]:
    """Return the names of the ragged axes of a modality, in alphabetical order."""
    return sorted({axis for field in spec.fields.values() for axis in field.shape if isinstance(axis, str)})


def ragged_lengths(sample: Sample, modalities: Mapping[str, ModalitySpec]) -> dict[str, int]:
    """Return the length of each ragged axis (``modality.axis``) of the modalities that a sample has."""
    return {
        f"{name}.{axis}": length
        for name, arrays in sample.arrays.items()
        for field, spec in modalities[name].fields.items()
        for axis, length in zip(spec.shape, arrays[field].shape, strict=True)
        if isinstance(axis, str)
    }


@dataclass(frozen=True)
class Index:
    """Members of one shard.

    Attributes
    ----------
    ids : list of str
        S sample ids in the order of the shard.
    columns : Columns
        Names of the columns.
    offset, size : ndarray
        (S, P) int64, bytes from the start of the tar, and length.
    digest : ndarray
        (S, P, 16) uint8.
    length : ndarray
        (S, A) int32, lengths of the ragged axes, -1 where the modality is absent.
    text : ndarray
        (S, T) bool, whether the sample has the text.
    """

    ids: list[str]
    columns: Columns
    offset: np.ndarray
    size: np.ndarray
    digest: np.ndarray
    length: np.ndarray
    text: np.ndarray

    def save(self, path: Path) -> None:
        """Write the index."""
        names = {
            "ids": self.ids,
            "parts": self.columns.parts,
            "axes": self.columns.axes,
            "texts": self.columns.texts,
        }
        data = safetensors.numpy.save(
            {name: getattr(self, name) for name in _SHAPES},
            # one key: safetensors writes several in an order that differs from process to process
            metadata={"index": json.dumps(names)},
        )
        # not safetensors' own save_file, whose files no other user may read
        path.write_bytes(data)

    def row(self, row: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bytes, ...]]:
        """Return the P offsets, sizes and digests of one sample, as Python objects."""
        numbers: tuple[Any, ...] = self._row.unpack_from(self._rows, row * self._row.size)
        count = len(self.columns.parts)
        return numbers[:count], numbers[count : 2 * count], numbers[2 * count :]

    @cached_property
    def _row(self) -> struct.Struct:
        parts = len(self.columns.parts)
        return struct.Struct(f"<{2 * parts}q" + f"{DIGEST_BYTES}s" * parts)

    @cached_property
    def _rows(self) -> bytes:
        """All rows as one string: to unpack a row costs a fifth of looking up its numbers in the arrays."""
        columns = [self.offset.astype("<i8"), self.size.astype("<i8"), self.digest]
        flat = [np.ascontiguousarray(column).reshape(len(self.ids), -1).view(np.uint8) for column in columns]
        return np.concatenate(flat, axis=1).tobytes()


_SHAPES = {
    "offset": ("<i8", lambda columns: (len(columns.parts),)),
    "size": ("<i8", lambda columns: (len(columns.parts),)),
    "digest": ("u1", lambda columns: (len(columns.parts), DIGEST_BYTES)),
    "length": ("<i4", lambda columns: (len(columns.axes),)),
    "text": ("?", lambda columns: (len(columns.texts),)),
}


def read_index(data: bytes, modalities: Mapping[str, ModalitySpec], *, shard_bytes: int, where: object) -> Index:
    """Read and check an index.

    Parameters
    ----------
    data : bytes
        The index file.
    modalities : mapping of str to ModalitySpec
        The schema of the data set, which says what columns there are.
    shard_bytes : int
        Size of the shard: no member reaches past it.
    where : object
        Named in errors.

    Raises
    ------
    DataError
        Where the index is damaged, contradicts itself, the schema or the shard.
    """
    arrays = decode_arrays(data, where=str(where), header_bytes=HEADER_BYTES)
    columns = Columns.of(modalities)
    try:
        names = json.loads(decode_metadata(data, where=str(where), header_bytes=HEADER_BYTES)["index"])
        ids = names.pop("ids")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("the index of a shard is damaged", where=where, why=repr(error)) from None
    wanted = {"parts": list(columns.parts), "axes": list(columns.axes), "texts": list(columns.texts)}
    if names != wanted or not isinstance(ids, list) or not all(isinstance(sample_id, str) for sample_id in ids):
        raise DataError("the index of a shard contradicts the manifest", where=where, why=f"its columns are {names}")
    for name, (dtype, shape) in _SHAPES.items():
        array = arrays.get(name)
        if array is None or array.dtype != np.dtype(dtype) or array.shape != (len(ids), *shape(columns)):
            raise DataError("the index of a shard contradicts itself", where=where, why=f"'{name}' does not fit")
    index = Index(ids, columns, **{name: arrays[name] for name in _SHAPES})
    absent = index.size == ABSENT
    end = min(shard_bytes, 1 << 62)
    # no sum, which could overflow
    outside = (index.offset > end) | (index.size > end - np.minimum(index.offset, end))
    if absent[:, 0].any() or (index.size < ABSENT).any() or (index.offset < 0).any() or (outside & ~absent).any():
        raise DataError("the index of a shard points outside of it", where=where)
    if (index.size[:, 0] > META_BYTES).any():
        why = f"the metadata of a sample take more than {META_BYTES} bytes"
        raise DataError("the index of a shard names a member that is too large", where=where, why=why)
    return index
