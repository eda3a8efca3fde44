"""Where the entries of a JSON file of any size lie: a list, a mapping of ids, or one entry a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from shards.errors import DataError

MAX_BYTES = 5_000_000
CHUNK = 1 << 18
BLANKS = re.compile(r"[ \t\r\n]*")
DELIMITERS = frozenset(" \t\r\n,:]}")
# Keys of one structure, and of what pymatgen and the Materials Project write around one.
KEYS_OF_ONE = {"structure", "lattice", "sites", "properties", "parameters", "data", "builder_meta"}
# Keys beside the rows of an ASE database.
ASE_EXTRAS = {"ids", "nextid", "metadata"}


class Entry(NamedTuple):
    """One entry: offset and length in bytes, its key in a mapping (None elsewhere), and its value."""

    start: int
    size: int
    key: str | None
    value: Any


def lines(file: BinaryIO) -> Iterator[Entry]:
    """Find the entries of a file of JSON lines; empty lines are none.

    Raises
    ------
    DataError
        At a line that is too long; a line that is no JSON has the value None.
    """
    offset = 0
    while line := file.readline(MAX_BYTES + 1):
        if len(line) > MAX_BYTES:
            raise DataError(f"a line has more than {MAX_BYTES // 10**6} MB", why=f"it begins at byte {offset}")
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield Entry(offset, len(line), None, value)
        offset += len(line)


def entries(file: BinaryIO) -> Iterator[Entry]:
    """Find the entries of a JSON list or mapping; memory does not grow with the file.

    A file that holds one structure, alone or with what belongs to it, has no entries.

    Raises
    ------
    DataError
        At the first entry that is no JSON object or too large: what follows cannot be told apart.
    """
    scanner = _Scanner(file)
    opening = scanner.take()
    if opening not in ("[", "{"):
        raise DataError("the file is no JSON list or object")
    number = 0
    ase = False
    while scanner.peek() not in ("]", "}", ""):
        key = scanner.key() if opening == "{" else None
        if key is not None and number == 0 and (key in KEYS_OF_ONE or scanner.peek() != "{"):
            return
        if ase and key in ASE_EXTRAS:
            scanner.value()
        elif scanner.peek() != "{":
            raise DataError(f"entry {number} is no JSON object")
        else:
            found = scanner.value()
            ase = ase or (number == 0 and {"numbers", "positions"} <= found.value.keys())
            yield found._replace(key=key)
        number += 1
        if scanner.peek() == ",":
            scanner.take()
        elif scanner.peek() not in ("]", "}"):
            raise DataError(f"the list is cut off or damaged after entry {number - 1}")
    if scanner.take() == "" or scanner.peek() != "":
        raise DataError("the file is cut off, or goes on after its end")


class _Scanner:
    """Decodes one JSON value after another from a stream.

    Bytes are taken as Latin-1 characters, so that positions in text are positions in the file; JSON's own syntax is
    ASCII.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.text = ""
        self.at = 0
        self.dropped = 0
        self.ended = False
        self.decoder = json.JSONDecoder()

    def _more(self) -> None:
        # as much as an entry may have, so that none is decoded in vain more than once
        data = self.file.read(MAX_BYTES if self.text else CHUNK)
        self.ended = not data
        self.dropped += self.at
        self.text = self.text[self.at :] + data.decode("latin-1")
        self.at = 0

    def peek(self) -> str:
        """Return the next character that is no blank, empty at the end of the file."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def take(self) -> str:
        """Return the next character that is no blank and go past it."""
        character = self.peek()
        self.at += len(character)
        return character

    def key(self) -> str:
        """Decode a key of an object, and go past it and its colon."""
        key = self.value().value
        if not isinstance(key, str) or self.take() != ":":
            raise DataError("an entry has no key", why="the file is no valid JSON")
        return key

    def value(self) -> Entry:
        """Decode the next value and go past it."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                # a number may go on in what is not read yet
                if self.ended or self.text[end : end + 1] in DELIMITERS:
                    return self._entry(value, end)
            except RecursionError:
                raise DataError("an entry is nested too deeply", why=f"byte {self.dropped + self.at}") from None
            except ValueError:
                pass
            if self.ended or len(self.text) - self.at > MAX_BYTES:
                raise DataError(
                    f"an entry is no JSON, or has more than {MAX_BYTES // 10**6} MB",
                    why=f"it begins at byte {self.dropped + self.at}",
                )
            self._more()

    def _entry(self, value: Any, end: int) -> Entry:
        raw = self.text[self.at : end]
        if not raw.isascii():
            value = json.loads(raw.encode("latin-1"))
        entry = Entry(self.dropped + self.at, len(raw), None, value)
        self.at = end
        return entry
