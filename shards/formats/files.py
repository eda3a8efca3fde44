"""Files in folders of strangers: which there are, which may be opened, and their text, plain or packed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.errors import DataError
from shards.formats.packed import unpacked
from shards.formats.structure import refusing


def files_below(folder: Path) -> Iterator[str]:
    """Yield the files below a folder as relative names, sorted within each folder; hidden ones are left out.

    Links to folders are not followed.

    Raises
    ------
    DataError
        For a folder that cannot be listed: what it holds would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        where = str(error.filename)[:300]
        raise DataError(f"the folder cannot be listed: {error.strerror}", where=where, do="check its permissions")

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        prefix = Path(place).relative_to(folder)
        yield from ((prefix / name).as_posix() for name in sorted(names) if not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Tell whether a part of a relative name is hidden, or what a Mac adds to an archive."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def refusal(path: Path, root: Path) -> str:
    """Say why a file below ``root`` is not opened, empty where it may be.

    Reading a pipe would never end, and a link may lead to what is none of the data.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "it is no regular file"
        if not os.access(path, os.R_OK):
            return "it may not be read"
        return "" if path.resolve().is_relative_to(root.resolve()) else "it is a link that leads out of the folder"
    except OSError as error:
        return f"it cannot be opened: {error.strerror}"


def inside(folder: Path, name: str) -> Path:
    """Return the file called ``name`` in a folder of a stranger.

    Raises
    ------
    DataError
        Where there is no such file, or the name or a link leads out of the folder.
    """
    path = folder / name
    try:
        outside = Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve())
        if not outside and path.is_file():
            return path
    except (OSError, ValueError):
        outside = False
    problem = "lies outside of its folder" if outside else "is missing"
    raise DataError(f"the file '{name[:200]}' {problem}", where=folder, do="check the table's file names")


def stamp(folder: Path, name: str) -> str:
    """Return size and time of a file in a folder, empty where there is none."""
    try:
        status = (folder / name).stat()
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


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
