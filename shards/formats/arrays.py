"""Arrays from files of strangers: numpy's own formats, read without ever running what they name.

A ``.npy`` header is Python source of a dictionary; it is read as a literal, and an array of objects
(which is a pickle) is refused, as is a shape that the file's bytes do not fill.
"""

from __future__ import annotations

import ast
import io
import math
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from shards.errors import DataError

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
# how the description of an entry begins in the directory of a zip
ENTRY = b"PK\x01\x02"
MAX_ENTRIES = 10_000
MAX_RATIO = 200
RATIO_FLOOR = 16 << 20


def parse_npy(data: bytes, *, where: str) -> np.ndarray:
    """Return the array in ``.npy`` bytes: real numbers or truth values of any shape, in this machine's byte order.

    Raises
    ------
    DataError
        Naming ``where``, for anything else.
    """
    try:
        start = 12 if data[6:7] in (b"\2", b"\3") else 10
        length = int.from_bytes(data[8:start], "little")
        if not data.startswith(MAGIC) or data[6:7] not in (b"\1", b"\2", b"\3") or length > MAX_HEADER:
            raise ValueError("it does not begin like one")
        header = ast.literal_eval(data[start : start + length].decode("utf-8" if data[6:7] == b"\3" else "latin1"))
        if not isinstance(header, Mapping) or set(header) != {"descr", "fortran_order", "shape"}:
            raise ValueError("its header says something else than a type and a shape")
        descr, shape = header["descr"], header["shape"]
        if not isinstance(descr, str) or not isinstance(shape, tuple) or not isinstance(header["fortran_order"], bool):
            raise ValueError(f"its type is {str(descr)[:60]}")
        dtype = np.dtype(descr)
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise ValueError(f"its type is {str(descr)[:60]}, no real number")
        if not all(type(axis) is int and axis >= 0 for axis in shape) or len(shape) > 16:
            raise ValueError(f"its shape is {str(shape)[:60]}")
        body = memoryview(data)[start + length :]
        if math.prod(shape) * dtype.itemsize != len(body):
            raise ValueError(f"its shape {str(shape)[:60]} is not that of its {len(body)} bytes")
        array = np.frombuffer(body, dtype).reshape(shape, order="F" if header["fortran_order"] else "C")
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError("the member is no array that may be read", where=where, why=str(error)[:200]) from None
    return np.require(array.astype(dtype.newbyteorder("="), copy=False), requirements="C")


def parse_npz(data: bytes, *, where: str, max_bytes: int) -> dict[str, np.ndarray]:
    """Return the arrays in ``.npz`` bytes by name.

    Raises
    ------
    DataError
        Naming ``where``, for anything that is no plain zip of arrays, or unpacks to more than ``max_bytes``
        or to more than 200 times its size.
    """
    limit = _limit(len(data), max_bytes)
    try:
        # zipfile makes an object of every entry before anything can be counted
        if data.count(ENTRY) > MAX_ENTRIES:
            raise ValueError(f"it holds more than {MAX_ENTRIES} arrays")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > limit:
                raise _too_large(limit, where)
            if len({entry.filename for entry in entries}) != len(entries):
                raise ValueError("two of its arrays have the same name")
            arrays = {}
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"it holds '{entry.filename[:60]}'")
                with archive.open(entry) as file:
                    # without a number it would unpack all that there is, whatever size the entry states
                    content = file.read(entry.file_size)
                arrays[name] = parse_npy(content, where=f"{where}, {name[:60]}")
            return arrays
    except (ValueError, OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("the member is no archive of arrays", where=where, why=str(error)[:200]) from None


def gunzip(data: bytes, *, where: str, max_bytes: int) -> bytes:
    """Return what gzip packed, or raise `DataError`: damaged, over ``max_bytes``, or over 200 times its size."""
    limit = _limit(len(data), max_bytes)
    engine = zlib.decompressobj(wbits=31)
    try:
        unpacked = engine.decompress(data, limit + 1)
    except zlib.error as error:
        raise DataError("the member is no whole gzip file", where=where, why=str(error)) from None
    if len(unpacked) > limit:
        raise _too_large(limit, where)
    if not engine.eof or engine.unused_data:
        raise DataError("the member is no whole gzip file", where=where, why="it ends too early, or goes on")
    return unpacked


def _limit(packed: int, max_bytes: int) -> int:
    return min(max_bytes, max(RATIO_FLOOR, MAX_RATIO * packed))


def _too_large(limit: int, where: str) -> DataError:
    return DataError(
        f"the member unpacks to more than {limit >> 20} MB", where=where, do="raise max_sample_bytes if it is meant so"
    )
