"""Files of calculations, plain or packed by gzip, bzip2 or xz."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.errors import DataError
from shards.formats.packed import unpacked
from shards.formats.structure import refusing


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading unpacked bytes; whatever its damage raises becomes a `DataError` that names it."""
    with (
        refusing("the file cannot be read", path),
        path.open("rb") as packed,
        unpacked(packed, path.name, path.stat().st_size) as file,
    ):
        yield file


def read_text(path: Path, max_bytes: int) -> str:
    """Return the text of a file that may be packed.

    Raises
    ------
    DataError
        For a file that is missing, damaged, no text, or larger than ``max_bytes`` when unpacked.
    """
    with opened(path) as file:
        data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise DataError(f"the file has more than {max_bytes // 10**6} MB")
        return data.decode()
