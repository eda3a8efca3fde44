"""The rows of a table of a user: CSV or TSV, plain or compressed, and Parquet.

A table is read by default-deny: text cells only, no expansion of a compressed file beyond what a table needs, and of a
Parquet file only the columns that are asked for, one row group at a time.
"""

from __future__ import annotations

import lzma
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import ConfigError, DataError, suggest
from shards.formats.packed import codec, unpacked

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.parquet as pq

# as they are written: "Na" is sodium, and "none" may be what was added
MISSING = {"", "-", "--", "–", "—", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "n.a.", "#N/A", "None", "null", "NULL"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MAX_CELL = 5_000_000
MAX_HEADER = 500
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}


class Rows(ABC):
    """A table as rows of cells: texts, or what a Parquet file holds.

    Attributes
    ----------
    path : Path
        The file.
    header : tuple of str
        Names of the columns, as in the file.
    count : int
        Number of rows, the header not among them.
    """

    path: Path
    header: tuple[str, ...]
    count: int

    @abstractmethod
    def column(self, name: str) -> Sequence[Any]:
        """Return all cells of a column."""

    @abstractmethod
    def row(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Return some cells of a row; rows are counted from 0."""

    @abstractmethod
    def stamps(self, columns: Sequence[str]) -> list[str]:
        """Return, for each row, a text that changes when the cells of these columns change."""

    def where(self, number: int, column: str | None = None) -> str:
        """Name a row (counted from 1, below the header) and a column for a message."""
        return f"{self.path}, row {number + 1}" + (f", column '{column}'" if column else "")

    def check(self, columns: Sequence[str]) -> None:
        """Raise `ConfigError` unless the table has each of ``columns``, once."""
        for name in columns:
            if name not in self.header:
                raise ConfigError(f"the table has no column '{name}'", where=self.path, why=suggest(name, self.header))
            if self.header.count(name) > 1:
                raise ConfigError(f"the table has several columns '{name}'", where=self.path, do="rename one of them")


def open_rows(path: Path, *, delimiter: str | None = None) -> Rows:
    """Open a table; the same unchanged file is read once a process.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.tsv`` (also with ``.gz``, ``.bz2`` or ``.xz``) or ``.parquet``.
    delimiter : str, optional
        What separates the cells of a text file; by the file's name by default.

    Raises
    ------
    DataError
        Where the file is missing, damaged, no table, or expands beyond reason.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"the table cannot be read: {error.strerror}", where=path, do="check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError("the table is no regular file", where=path, do="check the path")
    if path.suffix == ".parquet":
        return _parquet(path, status.st_size, status.st_mtime_ns)
    kind = Path(path.stem if codec(path.name) else path.name).suffix
    if delimiter is None and kind not in DELIMITERS:
        raise DataError(
            f"'{path.name}' is no table that can be read",
            where=path,
            do="give a .csv, .tsv or .parquet file, or state the delimiter of a text file",
        )
    return _text(path, delimiter or DELIMITERS[kind], status.st_size, status.st_mtime_ns)


def is_missing(cell: Any) -> bool:
    """Tell whether a cell holds nothing: empty, NaN, or a sign for it such as ``N/A`` or ``-`` (`MISSING`)."""
    if cell is None or (isinstance(cell, float) and cell != cell):
        return True
    return isinstance(cell, str) and cell.strip() in MISSING


def number(cell: Any, decimal: str = ".") -> float | None:
    """Return the finite number that a cell holds, None where it holds something else."""
    if isinstance(cell, str):
        text = cell.strip().replace("−", "-")
        if decimal != ".":
            # a point there divides thousands, where it is no slip: it is never taken for the decimal sign
            text = text.replace(".", " ").replace(decimal, ".")
        cell = float(text) if NUMBER.fullmatch(text) else None
    elif isinstance(cell, bool) or not isinstance(cell, (int, float, Decimal)):
        return None
    return float(cell) if cell is not None and np.isfinite(cell) else None


def text(cell: Any, where: str) -> str | None:
    """Return the text of a cell without white space at its ends, None where it holds nothing."""
    if is_missing(cell):
        return None
    if not isinstance(cell, (str, int, float, Decimal, date)):
        raise DataError("the cell is no text", where=where, why=type(cell).__name__)
    if isinstance(cell, str) and len(cell) > MAX_CELL:
        raise DataError(f"the cell has more than {MAX_CELL // 10**6} MB", where=where)
    return str(cell).strip()


class Cells:
    """The cells of one sample, which may have several rows.

    Parameters
    ----------
    rows : Rows
        The table.
    numbers : sequence of int
        The sample's rows, counted from 0.
    columns : sequence of str
        Columns that may be asked for.
    """

    def __init__(self, rows: Rows, numbers: Sequence[int], columns: Sequence[str]) -> None:
        self._rows, self._numbers = rows, numbers
        self._cells = [rows.row(number, columns) for number in numbers]

    def all(self, column: str) -> list[str]:
        """Return the texts of a column that may differ from row to row, missing ones left out."""
        texts = [
            text(row[column], self._rows.where(n, column)) for n, row in zip(self._numbers, self._cells, strict=True)
        ]
        return [found for found in texts if found is not None]

    def cell(self, column: str) -> Any:
        """Return the one known cell of a column, None where it is missing, or raise `DataError` where rows disagree."""
        known = [row[column] for row in self._cells if not is_missing(row[column])]
        if any(cell != known[0] for cell in known[1:]):
            raise DataError(
                f"the rows of the sample differ in column '{column}'",
                where=self.where(column),
                do="give the rows of one sample the same values, or none",
            )
        return known[0] if known else None

    def text(self, column: str | None) -> str | None:
        """Return the text of a column, None where it is missing."""
        return None if column is None else text(self.cell(column), self.where(column))

    def where(self, column: str) -> str:
        """Name the sample's first row and a column for a message."""
        return self._rows.where(self._numbers[0], column)


class TextRows(Rows):
    """A CSV or TSV file, in memory."""

    def __init__(self, path: Path, frame: pd.DataFrame) -> None:
        self.path = path
        self.header = tuple(str(name).strip() for name in frame.iloc[0])
        self.count = len(frame) - 1
        self._cells = {name: frame[i].to_numpy()[1:] for i, name in enumerate(self.header)}

    def column(self, name: str) -> Sequence[Any]:
        """Return all cells of a column."""
        return self._cells[name]  # type: ignore[return-value]

    def row(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Return some cells of a row."""
        return {name: self._cells[name][number] for name in columns}

    def stamps(self, columns: Sequence[str]) -> list[str]:
        """Return a digest of each row's cells."""
        from xxhash import xxh3_64_hexdigest

        cells = [self._cells[name] for name in columns]
        return [xxh3_64_hexdigest("\x1f".join(column[i] for column in cells).encode()) for i in range(self.count)]


@lru_cache(maxsize=2)
def _text(path: Path, delimiter: str, size: int, changed_ns: int) -> Rows:
    import pandas as pd

    try:
        with path.open("rb") as packed, unpacked(packed, path.name, size) as file:
            frame = pd.read_csv(
                file, sep=delimiter, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", engine="c"
            ).fillna("")
    except DataError as error:
        raise DataError(error.what, where=path, why=error.why, do=error.do) from None
    except UnicodeDecodeError:
        raise DataError("the table is no text in UTF-8", where=path, do="save it as CSV in UTF-8") from None
    except (ValueError, OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"the table cannot be read: {str(error).strip()[:200]}", where=path) from None
    if max(len(name) for name in frame.iloc[0]) > MAX_HEADER:
        raise DataError("the first row of the table is no header", where=path, do="begin with the columns' names")
    return TextRows(path, frame)


class ParquetRows(Rows):
    """A Parquet file, read by columns and row groups."""

    def __init__(self, path: Path, file: pq.ParquetFile, version: tuple[int, int]) -> None:
        self.path = path
        self.header = tuple(file.schema_arrow.names)
        self.count = file.metadata.num_rows
        self._file, self._version = file, version
        lengths = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(int)

    def column(self, name: str) -> Sequence[Any]:
        """Return all cells of a column."""
        with _damage_named(self.path):
            cells = self._file.read(columns=[name]).column(0)
        return cells.to_pylist()

    def row(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Return some cells of a row."""
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        table = _row_group(self.path, self._version, group, tuple(columns))
        return table.slice(number - int(self._starts[group]), 1).to_pylist()[0]

    def stamps(self, columns: Sequence[str]) -> list[str]:
        """Return size and time of the file for each row: its columns are not read to list its rows."""
        return ["{}-{}".format(*self._version)] * self.count


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into `DataError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"the Parquet file is damaged: {reason}", where=path) from None


@lru_cache(maxsize=4)
def _parquet(path: Path, size: int, changed_ns: int) -> Rows:
    import pyarrow.parquet as pq

    with _damage_named(path):
        return ParquetRows(path, pq.ParquetFile(path), (size, changed_ns))


@lru_cache(maxsize=2)
def _row_group(path: Path, version: tuple[int, int], group: int, columns: tuple[str, ...]) -> Any:
    rows = _parquet(path, *version)
    assert isinstance(rows, ParquetRows)
    with _damage_named(path):
        return rows._file.read_row_group(group, columns=list(columns))
