"""Rows of ASE databases (SQLite or JSON), read column by column.

``ase.db`` itself opens a database for writing, makes missing tables, and decodes whatever objects a
row names. Here the connection is read-only, the database may not call a function, and of a row only
numbers and text are taken.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import DataError

if TYPE_CHECKING:
    from pymatgen.core import Structure

# Versions of ASE's table that hold the columns below in this way.
VERSIONS = range(5, 10)
MAX_BYTES = 5_000_000
SCALARS = ("energy", "free_energy", "magmom", "charge")
# Steps of SQLite's virtual machine between two looks at the budget, and the budget: seconds, for a damaged table.
STEPS, MAX_ROUNDS = 1_000_000, 2_000


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """List the rows of an SQLite database in the order of their ids, with their key-value pairs.

    Raises
    ------
    DataError
        For a file that is no ASE database of a known version, is damaged, or is being written.
    """
    last = None
    with closing(_connect(path)) as connection:
        try:
            for row, pairs in connection.execute("SELECT id, key_value_pairs FROM systems ORDER BY id"):
                if last is not None and not row > last:
                    raise DataError("the rows of the database are out of order", where=path, why="it is damaged")
                last = row
                yield row, _pairs(pairs)
        except sqlite3.Error as error:
            raise DataError("the database cannot be read", where=path, why=str(error)[:200]) from None


def row_structure(path: Path, row: int, max_atoms: int) -> tuple[Structure, dict[str, Any]]:
    """Read one row of an SQLite database.

    Returns
    -------
    tuple of Structure and dict
        The structure, and the row's energy, total magnetic moment, charge and key-value pairs.
    """
    from shards.formats.structure import check_atoms, periodic_structure

    columns = ("numbers", "positions", "cell", "pbc", "key_value_pairs", *SCALARS)
    with closing(_connect(path)) as connection:
        # the names are those above, never the file's
        found = connection.execute(f"SELECT {', '.join(columns)} FROM systems WHERE id=?", (row,)).fetchone()
    if found is None:
        raise DataError(f"the database has no row {row}")
    values = dict(zip(columns, found, strict=True))
    numbers = np.frombuffer(values["numbers"], dtype="<i4")
    check_atoms(len(numbers), max_atoms)
    positions = np.frombuffer(values["positions"], dtype="<f8").reshape(-1, 3)
    cell = np.frombuffer(values["cell"], dtype="<f8").reshape(3, 3)
    structure = periodic_structure(numbers.tolist(), positions, cell, values["pbc"] == 0b111)
    scalars = {key: values[key] for key in SCALARS if values[key] is not None}
    return structure, {**scalars, **_pairs(values["key_value_pairs"])}


def entry_structure(entry: Mapping[str, Any], max_atoms: int) -> tuple[Structure, dict[str, Any]]:
    """Read one entry of a JSON database, as `row_structure` does."""
    from shards.formats.structure import check_atoms, periodic_structure

    numbers = _array(entry["numbers"])
    check_atoms(len(numbers), max_atoms)
    species = [int(number) for number in numbers]
    periodic = bool(np.all(_array(entry.get("pbc", False))))
    structure = periodic_structure(species, _array(entry["positions"]), _array(entry["cell"]), periodic)
    pairs = entry.get("key_value_pairs")
    return structure, {**{key: entry[key] for key in SCALARS if key in entry}, **(pairs if pairs else {})}


def is_entry(entry: Any) -> bool:
    """Tell whether a JSON value is an entry of an ASE database."""
    return isinstance(entry, Mapping) and {"numbers", "positions", "cell"} <= entry.keys()


def _array(value: Any) -> np.ndarray:
    """Return a list, or an array or cell as ASE writes them to JSON, as float64."""
    if isinstance(value, Mapping) and "array" in value:
        value = value["array"]
    if isinstance(value, Mapping):
        shape, _, data = value["__ndarray__"]
        return np.array(data, dtype=np.float64).reshape(shape)
    return np.array(value, dtype=np.float64)


def _pairs(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except (ValueError, TypeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError("the key-value pairs of a row are no JSON object")
    return value


def _connect(path: Path) -> sqlite3.Connection:
    """Open a database so that it can be read, and nothing else."""
    for suffix in ("-wal", "-journal"):
        beside = path.with_name(path.name + suffix)
        if beside.exists() and beside.stat().st_size:
            raise DataError("the database is being written, or was not closed", where=path, why=f"there is {beside}")
    rounds = 0

    def over_budget() -> bool:
        nonlocal rounds
        rounds += 1
        return rounds > MAX_ROUNDS

    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.set_progress_handler(over_budget, STEPS)
        connection.set_authorizer(_only_reading)
        kinds = connection.execute("SELECT name, type FROM sqlite_master").fetchall()
        version = connection.execute("SELECT value FROM information WHERE name='version'").fetchone()
    except sqlite3.Error as error:
        raise DataError("the file is no ASE database", where=path, why=str(error)[:200]) from None
    if ("systems", "table") not in kinds or version is None or str(version[0]) not in map(str, VERSIONS):
        raise DataError(
            f"the database is of version {version and version[0]}, known are {VERSIONS[0]} to {VERSIONS[-1]}",
            where=path,
            do="convert it with python -m ase.db.convert",
        )
    return connection


def _only_reading(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_OK if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ) else sqlite3.SQLITE_DENY
