"""A ledger: what is done of a long job, one JSON object a line, on disk before the next thing is begun."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from shards.errors import DataError


class Ledger:
    """A file of JSON lines that is only ever appended to and survives a kill at any moment.

    A line counts once its line feed is on disk; what a kill left behind the last one is cut off when
    the ledger is opened for writing.

    Parameters
    ----------
    path : Path
        The file; it need not exist.

    Raises
    ------
    DataError
        Where a complete line is no JSON object: the file was damaged, not cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        data = path.read_bytes() if path.exists() else b""
        self._end = data.rfind(b"\n") + 1
        self.entries: list[dict[str, Any]] = []
        for number, line in enumerate(data[: self._end].splitlines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                raise DataError(
                    "a line of the ledger is damaged",
                    where=f"{path}, line {number}",
                    do="remove the folder and download it again",
                )
            self.entries.append(entry)

    def __enter__(self) -> Ledger:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(self._file, self._end)
        os.lseek(self._file, self._end, os.SEEK_SET)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry and flush it to disk; the ledger must be open (``with ledger:``)."""
        assert self._file is not None
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        # a full disk may take a part of the line; the next open cuts it off
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes were written to {self.path}")
        os.fsync(self._file)
        self._end += written
        self.entries.append(entry)
