"""Bytes of a shard's members: safetensors for arrays, JSON for the rest, and nothing else.

No member is ever unpickled or executed: a name that is not of these two kinds is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import safetensors.numpy
import xxhash

from shards.errors import DataError
from shards.schema import META, MODALITY_NAME

DIGEST_BYTES = 16
ID_CHARACTERS = 4096
# of safetensors: the names, dtypes and shapes of a modality's few fields. Parsed, JSON takes up to 30 times its bytes
HEADER_BYTES = 1 << 20
CACHED_HEADER_BYTES = 4096
MAX_AXES = 32
MAX_ELEMENTS = 1 << 59
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def escape(sample_id: str) -> str:
    """Return a tar-safe key for any id: dots, slashes and everything unusual become ``%XX``.

    webdataset splits a member's name at its first dot, so ``Li0.5CoO2`` and ``Li0.7CoO2`` would
    merge into one sample if dots stood as they are.
    """
    if not sample_id:
        raise DataError("a sample has an empty id", do="give every record an id of at least one character")
    if len(sample_id) > ID_CHARACTERS:
        raise DataError("a sample's id is too long", where=f"{sample_id[:40]}...", why=f"more than {ID_CHARACTERS}")
    try:
        quoted = quote(sample_id, safe="")
    except UnicodeEncodeError as error:
        raise DataError("a sample's id is no valid unicode", where=repr(sample_id), why=error.reason) from None
    return quoted.replace(".", "%2E").replace("~", "%7E")


def unescape(key: str) -> str:
    """Invert `escape`."""
    return unquote(key)


def member_name(sample_id: str, part: str) -> str:
    """Return the tar member of a sample's ``part``: a modality's name or ``meta``."""
    if part == META:
        return f"{escape(sample_id)}.{META}.json"
    if not MODALITY_NAME.fullmatch(part):
        raise DataError(
            f"'{part}' cannot name a modality", why="names are lower-case letters, digits and _", do="rename it"
        )
    return f"{escape(sample_id)}.{part}.safetensors"


def digest(data: bytes | memoryview) -> bytes:
    """Return the 128-bit xxh3 digest that guards a member against damage (not against forgery)."""
    return xxhash.xxh3_128_digest(data)


def encode_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the arrays of one modality as safetensors bytes, fields in alphabetical order."""
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"field '{name}' holds {array.dtype}", why="shards hold real numbers only")
    # not ascontiguousarray, which would turn 0 axes into 1
    return safetensors.numpy.save({name: np.require(arrays[name], requirements="C") for name in sorted(arrays)})


class _Field(NamedTuple):
    """Where an array lies behind the header of a safetensors file."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int


class _Layout(NamedTuple):
    fields: tuple[_Field, ...]
    end: int
    metadata: dict[str, str]


def decode_arrays(data: bytes | memoryview, *, where: str, header_bytes: int = HEADER_BYTES) -> dict[str, np.ndarray]:
    """Return the arrays in safetensors ``data`` as views of it, without a copy.

    Parameters
    ----------
    data : bytes or memoryview
        A whole safetensors file.
    where : str
        Named in errors.
    header_bytes : int
        What the header may take.

    Raises
    ------
    DataError
        Naming ``where`` if the data are damaged.
    """
    view = memoryview(data)
    layout, start = _read_layout(view, where, header_bytes)
    return {name: np.ndarray(shape, dtype, view, start + begin) for name, dtype, shape, begin in layout.fields}


def decode_metadata(data: bytes | memoryview, *, where: str, header_bytes: int = HEADER_BYTES) -> dict[str, str]:
    """Return the strings in the header of safetensors ``data``; raise `DataError` naming ``where`` if it is damaged."""
    return _read_layout(memoryview(data), where, header_bytes)[0].metadata


def _read_layout(view: memoryview, where: str, header_bytes: int) -> tuple[_Layout, int]:
    """Return what the header says, and where the arrays start."""
    size = int.from_bytes(view[:8], "little")
    start = 8 + size
    try:
        if size > header_bytes or start > len(view):
            raise ValueError(f"a header of {size} bytes in a file of {len(view)}")
        header = bytes(view[8:start])
        layout = _cached_layout(header) if size <= CACHED_HEADER_BYTES else _parse_layout(header)
        if start + layout.end != len(view):
            raise ValueError(f"arrays of {layout.end} bytes where there are {len(view) - start}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError("a member is no valid safetensors file", where=where, why=str(error)) from None
    return layout, start


def _parse_layout(header: bytes) -> _Layout:
    """Parse a safetensors header; refuse other dtypes, gaps, overlaps and keys that stand twice."""
    table = json.loads(header, object_pairs_hook=_unique)
    metadata = table.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("metadata that are no strings")
    fields, end = [], 0
    for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, stop) = np.dtype(DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        numbers = all(type(number) is int and number >= 0 for number in (*shape, begin, stop))
        # numpy cannot make an array with longer axes, even where another axis is 0
        if not numbers or len(shape) > MAX_AXES or math.prod(number or 1 for number in shape) >= MAX_ELEMENTS:
            raise ValueError(f"'{name}' has shape {shape}")
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"'{name}' does not fill its place")
        fields.append(_Field(name, dtype, tuple(shape), begin))
        end = stop
    return _Layout(tuple(fields), end, metadata)


# samples share few headers: those of fixed shapes are all the same
_cached_layout = lru_cache(maxsize=4096)(_parse_layout)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table


def encode_json(value: Mapping[str, Any]) -> bytes:
    """Return compact JSON with sorted keys; NaN is refused (an unknown label is absent)."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise DataError("a sample's metadata cannot be written as JSON", why=str(error)) from None


def decode_json(data: bytes | memoryview, *, where: str) -> dict[str, Any]:
    """Return the JSON object in ``data``; raise `DataError` naming ``where`` if it is damaged."""
    try:
        value = json.loads(str(data, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError("a member is no valid JSON", where=where, why=str(error)) from None
    if not isinstance(value, dict):
        raise DataError("a member is no JSON object", where=where)
    return value
