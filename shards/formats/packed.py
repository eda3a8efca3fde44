"""Files packed by gzip, bzip2 or xz, and archives, read in place: nothing is written to disk.

Whatever unpacks to far more than it is packed in is refused while it is read, not afterwards.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from shards.errors import DataError
from shards.formats.structure import refusing
from shards.formats.tar import checked_name

CODECS = (".gz", ".bz2", ".xz")
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SHORT = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz"}
ARCHIVES = (".zip", ".tar", *SHORT, *(f".tar{codec}" for codec in CODECS))
# A text of numbers packs to a tenth, at best to a fortieth; what unpacks to more than both of these is a bomb.
MAX_RATIO, SMALL_BYTES = 100, 16_000_000
# A zip's directory is read as a whole; a member takes 50 to 150 bytes in it and 600 in memory.
MAX_ZIP_DIRECTORY = 16_000_000
# Folders and empty files cost time to list and bring nothing.
MAX_EMPTY = 10_000
END_OF_ZIP, ZIP64_LOCATOR = b"PK\x05\x06", b"PK\x06\x07"
TAIL_BYTES = 66_000


class Member(NamedTuple):
    """One file of an archive.

    Attributes
    ----------
    name : str
        As in the archive.
    place : tuple of int, optional
        Offset and length in an (unpacked) tar; None in a zip.
    refused : str
        Why it is not read; empty where it may be.
    """

    name: str
    place: tuple[int, int] | None
    refused: str = ""


def codec(name: str) -> str:
    """Return the suffix of the compression of a file, empty where it has none."""
    return next((suffix for suffix in CODECS if name.lower().endswith(suffix)), "")


def is_archive(name: str) -> bool:
    """Tell whether a file is an archive, by its name."""
    return name.lower().endswith(ARCHIVES)


def unpacked(file: BinaryIO, name: str, packed_bytes: int) -> BinaryIO:
    """Return a seekable stream of what a file packs, or the file itself where its name has no such suffix.

    Reading raises `DataError` where more comes out than ``packed_bytes`` explain.
    """
    if not codec(name):
        return file
    stream: Any = _OPENERS[codec(name)](file, "rb")
    return io.BufferedReader(_Bounded(stream, max(SMALL_BYTES, MAX_RATIO * packed_bytes)))  # type: ignore[type-var]


class _Bounded(io.RawIOBase):
    """A stream that refuses to go beyond a limit."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream = stream
        self.limit = limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        self._check(self.stream.tell())
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is known only once it is reached")
        self._check(offset + (self.stream.tell() if whence == io.SEEK_CUR else 0))
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def _check(self, position: int) -> None:
        if position > self.limit:
            raise DataError(
                f"the file unpacks to more than {self.limit // 10**6} MB",
                why=f"it is smaller than a {MAX_RATIO}th of that: a decompression bomb",
                do="unpack it yourself if you trust it",
            )


class _Window(io.RawIOBase):
    """A part of a stream, as a stream of its own."""

    def __init__(self, stream: BinaryIO, start: int, size: int) -> None:
        self.stream, self.start, self.size = stream, start, size
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        self.stream.seek(self.start + self.position)
        data = self.stream.read(max(0, min(len(buffer), self.size - self.position)))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position


class Archive:
    """A zip or tar whose members are read in place.

    Parameters
    ----------
    path : Path
        The archive; what it is, its name says.

    Raises
    ------
    DataError
        For a file that is no such archive, or one with a directory of absurd length.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zip: zipfile.ZipFile | None = None
        with refusing("the archive cannot be read", path):
            if path.suffix.lower() == ".zip":
                _check_zip_directory(path)
                self.zip = zipfile.ZipFile(path)
            else:
                name = SHORT.get(path.suffix.lower(), path.name)
                self.stream = unpacked(path.open("rb"), name, path.stat().st_size)

    def members(self) -> Iterator[Member]:
        """List the members that are files or links, in the order of the archive.

        Raises
        ------
        DataError
            Where the archive is damaged, a bomb, or full of empty members.
        """
        if self.zip is not None:
            yield from map(_zip_member, (info for info in self.zip.infolist() if not info.is_dir()))
            return
        empty = full = 0
        # not refusing(): its silence of warnings would last while this generator waits
        try:
            self.stream.seek(0)
            with tarfile.open(fileobj=self.stream, mode="r:") as tar:
                for info in tar:
                    # tarfile keeps the header of every member that it has passed
                    tar.members.clear()  # type: ignore[attr-defined]
                    full, empty = (full + 1, empty) if info.size else (full, empty + 1)
                    if empty > MAX_EMPTY + 2 * full:
                        raise DataError(f"more than {MAX_EMPTY} members are empty")
                    if not info.isdir():
                        yield _tar_member(info)
                self._check_end(tar.offset)
        except DataError as error:
            raise DataError(error.what, where=self.path, why=error.why, do=error.do) from None
        except Exception as error:  # tarfile and the codecs raise whatever the first surprise causes
            raise DataError("the archive cannot be read", where=self.path, why=repr(error)[:200]) from None

    def _check_end(self, offset: int) -> None:
        """Raise `DataError` unless only zeros follow, to the end: tarfile takes a damaged header for the end."""
        self.stream.seek(offset)
        length = 0
        while rest := self.stream.read(1 << 16):
            length += len(rest)
            if rest.count(0) != len(rest):
                raise DataError("the archive is damaged, or goes on after its end", why=f"byte {offset}")
        if length < tarfile.BLOCKSIZE:
            raise DataError("the archive is cut off", why=f"byte {offset}")

    def open(self, name: str, place: tuple[int, int] | None) -> BinaryIO:
        """Open a member, unpacked where its name says that it is packed; raise `DataError` for a damaged one."""
        if self.zip is None:
            start, size = place or (0, 0)
            return unpacked(io.BufferedReader(_Window(self.stream, start, size)), name, size)  # type: ignore[type-var]
        with refusing("the member cannot be opened", name):
            info = self.zip.getinfo(name)
            stream = self.zip.open(info)
        return unpacked(stream, name, info.compress_size)  # type: ignore[arg-type]


def _zip_member(info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    refused = _hostile_name(info.filename)
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        refused = "it is a link or a device"
    elif info.flag_bits & 0x1:
        refused = "it is encrypted"
    elif info.file_size > max(SMALL_BYTES, MAX_RATIO * info.compress_size):
        refused = f"it unpacks to {info.file_size // 10**6} MB, a decompression bomb"
    return Member(info.filename, None, refused)


def _tar_member(info: tarfile.TarInfo) -> Member:
    refused = _hostile_name(info.name)
    if not info.isreg() or info.issparse():
        refused = "it is a link, a device or a sparse file"
    return Member(info.name, (info.offset_data, info.size), refused)


def _hostile_name(name: str) -> str:
    """Say what is wrong with a member's name, empty where nothing is."""
    try:
        checked_name(name.encode("utf-8", "surrogateescape"), "")
    except DataError as error:
        return error.what
    return ""


def _check_zip_directory(path: Path) -> None:
    """Raise `DataError` before a directory is read that is absurdly long."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - TAIL_BYTES))
        tail = file.read()
    end = tail.rfind(END_OF_ZIP)
    if end < 0 or len(tail) < end + 22:
        return  # zipfile says so
    (size,) = struct.unpack_from("<L", tail, end + 12)
    if tail[max(0, end - 20) : end].startswith(ZIP64_LOCATOR) and end >= 76:
        (size,) = struct.unpack_from("<Q", tail, end - 76 + 40)
    if size > MAX_ZIP_DIRECTORY:
        raise DataError(
            f"the archive has a directory of {size // 10**6} MB",
            where=path,
            why="it has hundreds of thousands of members",
            do="divide it, or unpack it yourself",
        )
