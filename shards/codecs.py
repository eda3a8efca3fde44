"""Bytes of a shard's members: safetensors for arrays, JSON for the rest, and nothing else.

No member is ever unpickled or executed: a name that is not of these two kinds is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import safetensors
import safetensors.numpy
import xxhash

from shards.errors import DataError
from shards.schema import META, MODALITY_NAME

DIGEST_BYTES = 16


def escape(sample_id: str) -> str:
    """Return a tar-safe key for any id: dots, slashes and everything unusual become ``%XX``.

    webdataset splits a member's name at its first dot, so ``Li0.5CoO2`` and ``Li0.7CoO2`` would
    merge into one sample if dots stood as they are.
    """
    if not sample_id:
        raise DataError("a sample has an empty id", do="give every record an id of at least one character")
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


def decode_arrays(data: bytes, *, where: str) -> dict[str, np.ndarray]:
    """Return the arrays in safetensors ``data``; raise `DataError` naming ``where`` if it is damaged."""
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise DataError("a member is no valid safetensors file", where=where, why=str(error)) from None


def encode_json(value: Mapping[str, Any]) -> bytes:
    """Return compact JSON with sorted keys; NaN is refused (an unknown label is absent)."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise DataError("a sample's metadata cannot be written as JSON", why=str(error)) from None


def decode_json(data: bytes, *, where: str) -> dict[str, Any]:
    """Return the JSON object in ``data``; raise `DataError` naming ``where`` if it is damaged."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise DataError("a member is no valid JSON", where=where, why=str(error)) from None
    if not isinstance(value, dict):
        raise DataError("a member is no JSON object", where=where)
    return value
