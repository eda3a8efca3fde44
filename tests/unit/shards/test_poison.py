"""Poison at the doors of a build: whatever a source finds in a folder, table or tar, nothing is executed."""

from __future__ import annotations

import csv
import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.errors import MatloomError
from shards.sources import source
from tests.poison import poisons

CIF_NAMES = ("one.cif", "POSCAR", "frames.xyz", "entry.json", "many.db", "lines.jsonl")
VASP_NAMES = ("CHGCAR", "vasprun.xml", "complete_dos.json", "POSCAR")
MULTIMAT_NAMES = ("crystal_potnet.pt", "dos_allmpids.pt", "mp-1.pt")


def folder_of(names: tuple[str, ...], kind: str) -> Callable[[Path, str, bytes], dict[str, Any]]:
    """A folder in which every file that the source looks for is poisoned, under its own and under the poison's name."""

    def make(folder: Path, ending: str, data: bytes) -> dict[str, Any]:
        place = folder / "records" / "mp-1"
        place.mkdir(parents=True)
        suffix = ".gz" if ending.endswith(".gz") else ""
        for name in names:
            (place / f"{name}{suffix}").write_bytes(data)
            (place.parent / f"{name}{suffix}").write_bytes(data)
        (place / f"evil.{ending}").write_bytes(data)
        return {"kind": kind, "path": str(place.parent)}

    return make


def lone_file(kind: str) -> Callable[[Path, str, bytes], dict[str, Any]]:
    def make(folder: Path, ending: str, data: bytes) -> dict[str, Any]:
        path = folder / f"evil.{ending}"
        path.write_bytes(data)
        return {"kind": kind, "path": str(path)}

    return make


def table_of(role: str, **options: Any) -> Callable[[Path, str, bytes], dict[str, Any]]:
    """A table whose column names the poisoned file, or a table file that is the poison itself."""

    def make(folder: Path, ending: str, data: bytes) -> dict[str, Any]:
        (folder / f"evil.{ending}").write_bytes(data)
        path = folder / "table.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["name", "file"], ["a", f"evil.{ending}"]])
        return {"kind": "table", "path": str(path), "id": "name", role: options or "file"}

    return make


def renamed_table(ending_of_table: str) -> Callable[[Path, str, bytes], dict[str, Any]]:
    def make(folder: Path, ending: str, data: bytes) -> dict[str, Any]:
        path = folder / f"table.{ending_of_table}"
        path.write_bytes(data)
        return {"kind": "table", "path": str(path), "id": "name"}

    return make


def foreign_tar(folder: Path, ending: str, data: bytes) -> dict[str, Any]:
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name, content in ((f"a.{ending}", data), ("a.txt", b"text")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    members = {"txt": "text", ending: "arrays.evil"}
    return {"kind": "webdataset", "path": str(folder / "shard.tar"), "members": members}


DOORS: dict[str, Callable[[Path, str, bytes], dict[str, Any]]] = {
    "structures, folder": folder_of(CIF_NAMES, "structures"),
    "structures, file": lone_file("structures"),
    "vasp": folder_of(VASP_NAMES, "vasp"),
    "multimat, folder": folder_of(MULTIMAT_NAMES, "multimat"),
    "multimat, file": lone_file("multimat"),
    "table, structure_path": table_of("structure_path"),
    "table, images": table_of("images", column="file"),
    "table, spectra": table_of("spectra", ir="file"),
    "table, csv": renamed_table("csv"),
    "table, parquet": renamed_table("parquet"),
    "webdataset": foreign_tar,
}


@pytest.mark.parametrize("door", DOORS)
def test_nothing_poisoned_is_executed(door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canary, counts = tmp_path / "canary", Counter[str]()
    for ending, data in poisons(canary).items():
        folder = tmp_path / ending
        folder.mkdir()
        try:
            records = source(DOORS[door](folder, ending, data))
            items = list(records.items())
        except MatloomError:
            counts["refused when listed"] += 1
            continue
        if not items:
            counts["not listed"] += 1
        for item in items:
            try:
                record = records.read(item)
            except MatloomError:
                counts["refused when read"] += 1
                continue
            assert not record.arrays and not record.images and record.structure is None
            counts["read without it"] += 1
    assert not canary.exists(), f"{door}: poison was executed"
    assert counts
    with capsys.disabled():
        print(f"\n  {door}: 0 executed, {dict(sorted(counts.items()))}")
