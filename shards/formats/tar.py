"""Tar files of strangers: a walk over the headers that believes nothing, and reads by offset.

Plain files and folders are members; everything else that a tar can hold (links, devices, pipes,
sparse files) is refused. Long names are understood in both spellings (GNU and pax), and a pax header
may state times and owners; one that would change a size or hide anything else is refused.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import DataError

BLOCK = 512
MAX_NAME = 1024
MAX_PART = 255
MAX_EXTENSION = 1 << 16
MAX_PADDING = 16 << 20
FILE, FOLDER, LONG_NAME, PAX, PAX_GLOBAL = (b"0", b"\0"), b"5", b"L", b"x", b"g"
REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    b"7": "a contiguous file",
    b"K": "a link with a long name",
    b"S": "a sparse file",
    b"D": "a dumped folder",
    b"M": "a part of a file on another volume",
    b"V": "a volume label",
}
# no part begins with a dot, nothing is special: most names, told at a glance
PLAIN = re.compile(rb"[A-Za-z0-9_+=,@%-][A-Za-z0-9_.+=,@%-]{0,99}(/[A-Za-z0-9_+=,@%-][A-Za-z0-9_.+=,@%-]{0,99}){0,8}")
HARMLESS = re.compile(rb"mtime|atime|ctime|uid|gid|uname|gname|comment|path")
PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file in a tar: ``name`` as checked, ``offset`` (bytes) of its content, ``size``."""

    name: str
    offset: int
    size: int


def walk(path: Path, *, max_members: int) -> Iterator[Member]:
    """Yield the plain files of a tar, in order.

    Parameters
    ----------
    path : Path
        An unpacked tar.
    max_members : int
        More are refused.

    Raises
    ------
    DataError
        Naming the member, for a hostile name or kind; for a tar that is damaged, cut short, packed, or
        goes on after its end.
    """
    try:
        with path.open("rb") as file:
            yield from _walk(file.fileno(), os.fstat(file.fileno()).st_size, path, max_members)
    except OSError as error:
        raise DataError("the tar file cannot be read", where=path, why=str(error)) from None


def _walk(file: int, length: int, path: Path, max_members: int) -> Iterator[Member]:
    offset, count, override = 0, 0, None
    while True:
        block = os.pread(file, BLOCK, offset)
        if offset == 0 and block[:2] in PACKED:
            packing = PACKED[block[:2]]
            raise DataError(f"the tar is packed with {packing}", where=path, do="unpack it: members are read by offset")
        if len(block) < BLOCK:
            raise _cut(path)
        if block.count(0) == BLOCK:
            break
        where = f"{path} at byte {offset}"
        kind, raw, size = _header(block, where)
        offset += BLOCK
        if offset + size > length:
            raise _cut(path)
        count += 1
        if count > max_members:
            raise DataError(
                f"the tar has more than {max_members} members", where=path, do="raise max_members, or split it"
            )
        if kind in (LONG_NAME, PAX, PAX_GLOBAL):
            if size > MAX_EXTENSION:
                raise DataError(f"a header of {size} bytes is no name", where=where)
            override = _extension(kind, os.pread(file, size, offset), where) or override
        else:
            name = checked_name(raw if override is None else override, where)
            override = None
            if kind in FILE:
                yield Member(name, offset, size)
            elif kind != FOLDER or size:
                # readers differ in whether they skip what follows a folder
                what = "a folder with content" if kind == FOLDER else REFUSED.get(kind, f"of an unknown kind {kind!r}")
                raise DataError(f"the member '{name}' is {what}", where=path, do="pack plain files")
        offset += -(-size // BLOCK) * BLOCK
    if override is not None:
        raise DataError("a header names a member that does not follow", where=path)
    _check_end(file, offset, length, path)


def _cut(path: Path) -> DataError:
    return DataError("the tar is cut short", where=path, why="its end is missing", do="copy or make it again")


def _check_end(file: int, offset: int, length: int, path: Path) -> None:
    """Raise unless two blocks of zeros and nothing but padding end the tar."""
    if length - offset < 2 * BLOCK:
        raise _cut(path)
    if length - offset > MAX_PADDING:
        raise DataError("the tar goes on for more than 16 MB after its end", where=path)
    rest = os.pread(file, length - offset, offset)
    if rest.count(0) != len(rest):
        raise DataError(
            "the tar goes on after its end", where=path, why="several tars in one file", do="split them, or pack again"
        )


def _header(block: bytes, where: str) -> tuple[bytes, bytes, int]:
    """Return kind, raw name and size of a header, whose checksum must be right."""
    try:
        checksum = int(block[148:156].strip(b" \0") or b"0", 8)
        size = int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        raise DataError("a header of the tar is damaged", where=where, why="its numbers are none") from None
    if checksum != sum(block) - sum(block[148:156]) + 8 * 32 or size < 0:
        raise DataError("a header of the tar is damaged", where=where, why="its checksum is another one")
    kind = block[156:157]
    raw = block[:100].split(b"\0", 1)[0]
    # GNU's own format keeps times where POSIX keeps the beginning of a long name
    if block[257:263] == b"ustar\0" and block[345]:
        raw = block[345:500].split(b"\0", 1)[0] + b"/" + raw
    return kind, raw, size


def _extension(kind: bytes, data: bytes, where: str) -> bytes | None:
    """Return the name that an extension header gives to the next member, or None."""
    if kind == LONG_NAME:
        return data.removesuffix(b"\0")
    name = None
    while data:
        head = re.match(rb"(\d{1,6}) ([^=]+)=", data)
        length = int(head[1]) if head else 0
        if not head or not head.end() < length <= len(data) or data[length - 1 : length] != b"\n":
            raise DataError("a pax header of the tar is damaged", where=where)
        if not HARMLESS.fullmatch(head[2]) or (kind == PAX_GLOBAL and head[2] == b"path"):
            raise DataError(
                f"a pax header changes '{head[2][:60].decode(errors='replace')}'",
                where=where,
                why="it could stand for another member than the one that is checked",
                do="pack plain files",
            )
        if head[2] == b"path":
            name = data[head.end() : length - 1]
        data = data[length:]
    return name


def checked_name(raw: bytes, where: str) -> str:
    """Return a member's name, without a leading ``./``, or raise `DataError` where it is hostile."""
    if PLAIN.fullmatch(raw):
        return raw.decode()
    shown = raw[:120].decode(errors="backslashreplace").encode("unicode_escape").decode()
    problem = None
    try:
        name = raw.decode("utf-8").removeprefix("./").removesuffix("/")
    except UnicodeDecodeError:
        name, problem = "", "is no UTF-8"
    parts = name.split("/")
    if problem is not None:
        pass
    elif name in ("", ".") and raw not in (b".", b"./"):
        problem = "is empty"
    elif len(raw) > MAX_NAME or any(len(part.encode()) > MAX_PART for part in parts):
        problem = f"is longer than {MAX_NAME} bytes, or a part of it than {MAX_PART}"
    elif name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name:
        problem = "is absolute, or spelled for another system"
    elif any(not part.strip(". ") for part in parts) and name != ".":
        problem = "has a part of nothing but dots"
    elif any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for character in name):
        problem = "has characters that cannot be seen"
    elif not unicodedata.is_normalized("NFC", name):
        problem = "is spelled in two ways that look the same (it is not in normal form C)"
    if problem is not None:
        raise DataError(f"the name '{shown}' of a member {problem}", where=where, do="rename the member and pack again")
    return name


def read_member(path: Path, offset: int, size: int) -> bytes:
    """Return the content of a member that `walk` found.

    Raises
    ------
    DataError
        Where the file changed since: no header of that size ends at ``offset``.
    """
    where = f"{path} at byte {offset}"
    try:
        with path.open("rb") as file:
            block = os.pread(file.fileno(), BLOCK, offset - BLOCK)
            data = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise DataError("the tar file cannot be read", where=path, why=str(error)) from None
    if len(block) < BLOCK or _header(block, where)[2] != size or len(data) != size:
        raise DataError("the tar changed while it was read", where=where, do="build again")
    return data
