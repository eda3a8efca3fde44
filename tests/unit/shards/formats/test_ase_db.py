"""ASE databases: the same rows as ase.db reads, and nothing that a database could do."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from ase.db import connect

from shards.errors import DataError
from shards.formats.ase_db import entry_structure, row_structure, rows
from tests.unit.shards.formats.test_extxyz import random_atoms


def written(path: Path, count: int = 12) -> Path:
    with connect(path) as database:
        for seed in range(count):
            atoms = random_atoms(seed)
            atoms.info = {}
            database.write(atoms, name=f"s{seed}", gap=seed / 7, metal=bool(seed % 2), data={"array": np.arange(3)})
    return path


@pytest.mark.parametrize("name", ["a.db", "a.json"])
def test_rows_are_those_of_ase(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name)
    if name == "a.db":
        connect(path).delete([4])
        listed = dict(rows(path))
        read = {row: row_structure(path, row, 100) for row in listed}
    else:
        table = json.loads(path.read_text())
        read = {row: entry_structure(table[str(row)], 100) for row in table["ids"]}
    expected = {row.id: row for row in connect(path).select()}
    assert list(read) == list(expected) and len(read) == 12 - (name == "a.db")
    for row, (structure, info) in read.items():
        atoms = expected[row].toatoms()
        assert [site.specie.Z for site in structure] == atoms.numbers.tolist()
        np.testing.assert_allclose(structure.lattice.matrix, atoms.cell.array)
        np.testing.assert_allclose(structure.cart_coords, atoms.positions, atol=1e-9)
        pairs = expected[row].key_value_pairs
        assert {key: info[key] for key in pairs} == pairs


def test_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    path = written(tmp_path / "a.db", 2)
    before = path.read_bytes()
    path.chmod(0o444)
    list(rows(path))
    row_structure(path, 1, 100)
    assert os.listdir(tmp_path) == ["a.db"] and path.read_bytes() == before
    (tmp_path / "empty.db").touch()
    with pytest.raises(DataError, match="no ASE database"):
        list(rows(tmp_path / "empty.db"))
    assert not (tmp_path / "empty.db").stat().st_size


HOSTILE = {
    "endless view": (
        "ALTER TABLE systems RENAME TO old",
        "CREATE VIEW systems AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) "
        "SELECT i AS id, '{}' AS key_value_pairs FROM n",
    ),
    "function in a view": (
        "ALTER TABLE systems RENAME TO old",
        "CREATE VIEW systems AS SELECT id, hex(zeroblob(500000000)) AS key_value_pairs FROM old",
    ),
    "computed column": (
        "ALTER TABLE systems RENAME TO old",
        "CREATE TABLE systems (id INTEGER, key_value_pairs TEXT AS (hex(zeroblob(20000000))))",
        "INSERT INTO systems (id) VALUES (1)",
    ),
    "harmless function": (
        "DROP TABLE information",
        "CREATE VIEW information AS SELECT 'version' AS name, lower('9') AS value",
    ),
    "no table": ("DROP TABLE systems",),
    "newer": ("UPDATE information SET value='10'",),
    "pairs are no object": ("UPDATE systems SET key_value_pairs='[1]'",),
    "pairs are bytes": ("UPDATE systems SET key_value_pairs=x'80049563'",),
    "huge pairs": ("UPDATE systems SET key_value_pairs='\"' || hex(zeroblob(6000000)) || '\"'",),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_database_can_do_nothing(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "a.db", 2)
    with sqlite3.connect(path) as connection:
        for statement in HOSTILE[name]:
            connection.execute(statement)
    connection.close()
    with pytest.raises(DataError):
        list(rows(path))


@pytest.mark.parametrize(
    "change",
    [
        "positions=x'00'",
        "positions='text'",
        "numbers=NULL",
        "numbers=zeroblob(4000000)",
        "cell=zeroblob(72)",
        "pbc=3",
        "pbc='a'",
    ],
)
def test_bad_rows_raise_and_the_others_are_read(tmp_path: Path, change: str) -> None:
    path = written(tmp_path / "a.db", 2)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE systems SET {change} WHERE id=1")
    connection.close()
    assert [row for row, _ in rows(path)] == [1, 2]
    with pytest.raises((DataError, ValueError, TypeError)):
        row_structure(path, 1, 1000)
    row_structure(path, 2, 1000)


def test_an_unfinished_database_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.db", 1)
    (tmp_path / "a.db-wal").write_bytes(b"pages")
    with pytest.raises(DataError, match="being written"):
        list(rows(path))


def test_json_rows_name_no_objects() -> None:
    entry = {
        "numbers": [11],
        "positions": [[0, 0, 0]],
        "cell": {"__ase_objtype__": "bandpath", "array": {"__ndarray__": [[3, 3], "O", [4, 0, 0, 0, 4, 0, 0, 0, 4]]}},
        "pbc": [True] * 3,
        "key_value_pairs": {"x": {"__ase_objtype__": "atoms"}},
    }
    structure, info = entry_structure(entry, 10)
    assert structure.volume == pytest.approx(64) and info == {"x": {"__ase_objtype__": "atoms"}}
