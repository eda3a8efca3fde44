"""Tensors from files of strangers: ``.pt`` by torch's restricted unpickler, ``.npz`` without pickle.

Nothing in a file names code to run: torch reads with ``weights_only``, and the classes of PyTorch
Geometric that a file of graphs needs are let through where they are asked for. These are plain
holders: making one of them again assigns its attributes and calls nothing that the file chose.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import DataError
from shards.formats.packed import MAX_RATIO, SMALL_BYTES

MAX_ELEMENTS = 1 << 27


def load_pt(path: Path, *, graphs: bool = False) -> Any:
    """Read a file of `torch.save`, its tensors mapped from the disk where they lie.

    Parameters
    ----------
    path : Path
        The file.
    graphs : bool
        Let PyTorch Geometric's ``Data`` through as well.

    Returns
    -------
    object
        Tensors, numbers and texts in dictionaries, lists and tuples.

    Raises
    ------
    DataError
        For a file that is missing, damaged, compressed, of torch before 1.6, or holds any other object.
    """
    import torch

    _check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
        if packed:
            raise DataError("the file is compressed, which torch.save never does", where=path)
        with torch.serialization.safe_globals(_graph_classes() if graphs else []):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except zipfile.BadZipFile:
        raise DataError(
            "the file is none that torch.save writes", where=path, why="it is damaged, or of torch before 1.6"
        ) from None
    except pickle.UnpicklingError as error:
        raise DataError(
            "the file holds more than tensors, numbers and texts",
            where=path,
            why=_unsafe(path) or str(error).splitlines()[0][:200],
            do="if you trust it, load it yourself and save its tensors in a plain dictionary",
        ) from None
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror or error}", where=path) from None
    except Exception as error:  # a damaged archive raises whatever its first wrong byte causes
        if isinstance(error, DataError):
            raise
        raise DataError("the file is damaged", where=path, why=f"{type(error).__name__}: {error}"[:200]) from None


def _check_file(path: Path) -> None:
    """Raise `DataError` for what is no file: reading a pipe would never end."""
    if not path.is_file():
        raise DataError("the file cannot be read", where=path, why="there is none, or it is no regular file")


def _graph_classes() -> list[Any]:
    from torch_geometric.data.data import Data, DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    return [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]


def _unsafe(path: Path) -> str:
    """Name the objects that a file asks for; they are listed without being imported."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return f"it names {', '.join(sorted(get_unsafe_globals_in_checkpoint(path))[:5])}"
    except Exception:  # the listing reads the same hostile file
        return ""


def to_array(value: Any, *, where: object) -> np.ndarray:
    """Return a dense tensor of real numbers as an array that owns its memory.

    Raises
    ------
    DataError
        For anything else, and for more than 2^27 elements: a tensor can claim any size by strides of 0.
    """
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_complex():
        raise DataError(f"a {type(value).__name__} stands where a tensor should", where=where)
    if value.numel() > MAX_ELEMENTS or value.is_quantized or value.device.type != "cpu":
        raise DataError(f"a tensor of shape {list(value.shape)} is none that can be data", where=where)
    value = value.detach().resolve_neg()
    # numpy has no bfloat16
    return np.array(value.float() if value.dtype == torch.bfloat16 else value)


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz``.

    Raises
    ------
    DataError
        For a file that is missing, damaged, holds Python objects, or unpacks to far more than its size.
    """
    _check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
            if total > max(SMALL_BYTES, MAX_RATIO * path.stat().st_size):
                raise DataError("the file expands beyond reason", where=path, do="unpack it if you trust it")
            return {member.filename.removesuffix(".npy"): _npy(archive, member, path) for member in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("the file is no valid .npz", where=path, why=str(error)[:200]) from None


def _npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)  # type: ignore[arg-type]
        size = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
        # the header is believed as far as the archive's own list of sizes bears it out
        if dtype.hasobject or size > member.file_size:
            raise DataError(f"'{member.filename}' does not hold the {dtype} array that it claims", where=path)
        data = file.read(size)
        if len(data) != size:
            raise DataError(f"'{member.filename}' ends early", where=path)
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def mapping(value: Any, *, where: object) -> Mapping[str, Any]:
    """Return a dictionary whose keys are texts, or raise `DataError`."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise DataError(f"a {type(value).__name__} stands where a dictionary of materials should", where=where)
    return value
