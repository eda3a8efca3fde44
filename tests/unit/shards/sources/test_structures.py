"""The source of structures: folders, archives, files that hold many, and what is hostile in them."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from ase.io import read, write
from pymatgen.core import Lattice, Structure

from shards.errors import ConfigError, DataError
from shards.labels import flat_labels
from shards.sources import source
from shards.sources.base import Item, Record
from tests.unit.shards.formats.test_extxyz import FRAME, random_atoms
from tests.unit.shards.formats.test_packed import NAMES, archive
from tests.unit.shards.sources.hostile_structures import write_all

NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
SI = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.43), ["Si"], [[0.125] * 3])


def load(path: Path, **options: Any) -> tuple[dict[str, Record], dict[str, str]]:
    """Read all records; also the reasons of those that are refused."""
    found = source({"kind": "structures", "path": str(path), **options})
    records, refused = {}, {}
    for item in found.items():
        assert item == Item(id=item.id, ref=json.loads(json.dumps(item.ref)), stamp=item.stamp)
        try:
            records[item.id] = found.read(item)
        except DataError as error:
            refused[item.id] = str(error)
    assert [item.id for item in found.items()] == [item.id for item in found.items()]
    assert all(record.id == id for id, record in records.items())
    return records, refused


def fill(folder: Path) -> None:
    (folder / "b").mkdir(parents=True)
    (folder / "mp-1").mkdir()
    (folder / "a.cif").write_text(NACL.to(fmt="cif"))
    (folder / "b" / "Li0.5CoO2.cif.gz").write_bytes(gzip.compress(SI.to(fmt="cif").encode()))
    (folder / "mp-1" / "POSCAR").write_text(NACL.to(fmt="poscar"))
    (folder / "c.vasp").write_text(SI.to(fmt="poscar"))
    (folder / "d.json").write_text(json.dumps(NACL.as_dict()))
    (folder / "e.xyz").write_text(FRAME * 2)
    (folder / "two.cif").write_text(NACL.to(fmt="cif") + "\n" + SI.to(fmt="cif"))
    (folder / "README.md").write_text("no structure")
    (folder / ".hidden.cif").write_text("no structure")


IDS = ["a", "b/Li0.5CoO2", "c", "d", "e/0", "e/1", "mp-1/POSCAR", "two/0", "two/1"]


def test_a_folder(tmp_path: Path) -> None:
    fill(tmp_path / "x")
    records, refused = load(tmp_path / "x")
    assert sorted(records) == IDS and not refused
    assert {id: record.tags["formula"] for id, record in records.items()} == {
        **dict.fromkeys(["a", "d", "mp-1/POSCAR", "two/0", "e/0", "e/1"], "NaCl"),
        **dict.fromkeys(["b/Li0.5CoO2", "c", "two/1"], "Si"),
    }
    assert sorted(load(tmp_path / "x", files="*.cif*")[0]) == ["a", "b/Li0.5CoO2", "two/0", "two/1"]
    assert sorted(load(tmp_path / "x", files="b/*")[0]) == ["b/Li0.5CoO2"]
    assert list(load(tmp_path / "x", files="*.md")[1]) == ["README.md"]


@pytest.mark.parametrize("suffix", NAMES)
def test_an_archive_holds_what_its_folder_holds(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path / "x")
    paths = sorted(path for path in (tmp_path / "x").rglob("*") if path.is_file())
    content = {path.relative_to(tmp_path / "x").as_posix(): path.read_bytes() for path in paths}
    before = set(tmp_path.rglob("*"))
    records, refused = load(archive(tmp_path / f"y{suffix}", content))
    expected, _ = load(tmp_path / "x")
    assert sorted(records) == sorted(expected) and not refused
    assert all(records[id].structure == expected[id].structure for id in records)
    assert set(tmp_path.rglob("*")) == before | {tmp_path / f"y{suffix}"}


@pytest.mark.parametrize("name", ["many.extxyz", "many.xyz.gz", "many.xyz.bz2", "many.xyz.xz"])
def test_frames_with_labels_and_tags(tmp_path: Path, name: str) -> None:
    expected = [random_atoms(seed) for seed in range(12)]
    write(tmp_path / name, expected, format="extxyz")
    options: dict[str, Any] = {
        "id_key": "id",
        "labels": {"gap_ev": "gap", "gap_ev_per_atom": {"key": "gap", "per_atom": True}, "absent": "none"},
        "tags": {"number": "n", "absent": "none"},
    }
    records, refused = load(tmp_path / name, **options)
    assert list(records) == [f"s {seed}" for seed in range(12)] and not refused
    for atoms, record in zip(expected, records.values(), strict=True):
        assert record.labels["gap_ev"] == pytest.approx(atoms.info["gap"])
        assert record.labels["gap_ev_per_atom"] == pytest.approx(atoms.info["gap"] / len(atoms))
        assert record.tags["number"] == str(atoms.info["n"])
        assert "absent" not in record.labels and "absent" not in record.tags
    assert list(load(tmp_path / name)[0]) == [f"many/{number}" for number in range(12)]


def test_labels_that_are_no_numbers(tmp_path: Path) -> None:
    values = ["1", "nan", "inf", "1e400", "word", "[1,2]", "T", "", "'1 2'"]
    frames = "".join(FRAME.replace("energy=-1.5", f"id=s{i} energy={value}") for i, value in enumerate(values))
    (tmp_path / "x.xyz").write_text(frames + FRAME.replace("energy=-1.5", ""))
    records, refused = load(tmp_path / "x.xyz", labels={"energy_ev": "energy"})
    known = {id: record.labels.get("energy_ev") for id, record in records.items()}
    assert known == {"x/0": 1.0, "x/1": None, "x/6": 1.0, "x/9": None}
    assert sorted(refused) == ["x/2", "x/3", "x/4", "x/5", "x/7", "x/8"]
    assert "'energy' is inf, no finite number" in refused["x/2"]
    _, refused = load(tmp_path / "x.xyz", id_key="id")
    assert refused["x/9"].count("it has no 'id'") == 1


def test_a_tensor_is_a_label_where_its_shape_is_declared(tmp_path: Path) -> None:
    values = ['"1 2 3 4 5 6 7 8 9"', '"1 2 3 4"', "1.5", '"1 2 3 4 5 6 7 8 inf"']
    frames = "".join(FRAME.replace("energy=-1.5", f"id=s{i} strain={value}") for i, value in enumerate(values))
    (tmp_path / "x.xyz").write_text(frames + FRAME.replace("energy=-1.5", ""))
    records, refused = load(tmp_path / "x.xyz", labels={"strain_pct": {"key": "strain", "shape": [3, 3]}})
    assert sorted(refused) == ["x/1", "x/2", "x/3"] and "strain_pct" not in records["x/4"].labels
    assert "has the shape (4,)" in refused["x/1"] and "not finite" in refused["x/3"]
    found = flat_labels(records["x/0"].labels)
    assert len(found) == 9 and found["strain_pct[0,1]"] == 2.0 and found["strain_pct[2,2]"] == 9.0
    divided, _ = load(tmp_path / "x.xyz", labels={"s": {"key": "strain", "shape": [3, 3], "per_atom": True}})
    assert flat_labels(divided["x/0"].labels)["s[2,2]"] == 9.0 / len(records["x/0"].structure)


def test_json_in_all_its_forms(tmp_path: Path) -> None:
    structures = {"mp-1": NACL.as_dict(), "mp-2": SI.as_dict()}
    documents = [
        {"material_id": id, "structure": table, "gap": 1.5, "data": {"hull": {"e": 0.25}}, "ok": None}
        for id, table in structures.items()
    ]
    (tmp_path / "mapping.json").write_text(json.dumps(structures))
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(json.dumps(documents).encode()))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents) + "{broken\n")
    (tmp_path / "one.json").write_text(json.dumps(documents[0]))
    assert list(load(tmp_path / "mapping.json")[0]) == ["mp-1", "mp-2"]
    options: dict[str, Any] = {"labels": {"gap_ev": "gap", "hull_ev": "data.hull.e", "ok": "ok"}}
    for name in ("list.json.gz", "lines.jsonl"):
        records, refused = load(tmp_path / name, id_key="material_id", **options)
        assert list(records) == ["mp-1", "mp-2"] and list(refused) == ["lines/2"] * (name == "lines.jsonl")
        assert all(record.labels == {"gap_ev": 1.5, "hull_ev": 0.25} for record in records.values())
    assert list(load(tmp_path / "one.json", **options)[0]) == ["one"]
    _, refused = load(tmp_path / "one.json", labels={"x": "data"})
    assert "no single number" in refused["one"]


@pytest.mark.parametrize("name", ["x.db", "x.json"])
def test_ase_databases(tmp_path: Path, name: str) -> None:
    with connect(tmp_path / name) as database:
        for seed in range(6):
            atoms = random_atoms(seed)
            atoms.info = {}
            database.write(atoms, label=f"s{seed}", gap=seed / 7)
        database.write(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]]))
    records, refused = load(tmp_path / name, labels={"gap_ev": "gap"})
    assert list(records) == [f"x/{row}" for row in range(1, 7)] and list(refused) == ["x/7"]
    assert "not periodic" in refused["x/7"]
    for row, record in zip(connect(tmp_path / name).select(), records.values(), strict=False):
        assert record.structure is not None and record.labels["gap_ev"] == row.gap
        np.testing.assert_allclose(record.structure.cart_coords, row.positions, atol=1e-9)
    assert list(load(tmp_path / name, id_key="label")[0]) == [f"s{seed}" for seed in range(6)]
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    records, refused = load(packed)
    assert len(records) == (6 if name == "x.json" else 0) and len(refused) == 1


def test_a_thousand_real_frames_against_ase(shared_data: Path) -> None:
    path = shared_data / "alexandria" / "alexandria-random-1k.xyz"
    records, refused = load(path, id_key="alexandria_id", labels={"energy_ev": "energy"}, tags={"source": "source"})
    expected = read(path, ":")
    assert len(records) == len(expected) == 1000 and not refused
    for atoms, (id, record) in zip(expected, records.items(), strict=True):
        structure = record.structure
        assert structure is not None and id == atoms.info["alexandria_id"]
        assert [site.specie.Z for site in structure] == atoms.numbers.tolist()
        np.testing.assert_allclose(structure.lattice.matrix, atoms.cell.array, rtol=0, atol=1e-12)
        np.testing.assert_allclose(structure.cart_coords, atoms.positions, rtol=0, atol=1e-9)
        assert record.labels == {"energy_ev": atoms.get_potential_energy()}
        assert record.tags["formula"] == structure.composition.reduced_formula and record.tags["source"] == "Alexandria"


def test_problems_of_the_whole_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "absent")
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="no structure file"):
        load(tmp_path / "x")
    (tmp_path / "x" / "a.cif").write_text(NACL.to(fmt="cif"))
    (tmp_path / "x" / "a.vasp").write_text(NACL.to(fmt="poscar"))
    with pytest.raises(DataError, match=r"in a\.cif and a\.vasp"):
        load(tmp_path / "x")
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match="archive cannot be read"):
        load(tmp_path / "x.zip")
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(DataError, match="no regular file"):
        load(tmp_path / "pipe.zip")
    for name in ("t.csv.gz", "t.parquet"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match="with the source 'table'"):
            load(tmp_path / name)
    with pytest.raises(ConfigError, match="did you mean 'labels'"):
        source({"kind": "structures", "path": "x", "label": {}})


def test_a_file_that_changed_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.xyz").write_text(FRAME * 3)
    found = source({"kind": "structures", "path": str(tmp_path / "x.xyz")})
    items = list(found.items())
    (tmp_path / "x.xyz").write_text(FRAME + FRAME * 3)
    with pytest.raises(DataError, match="changed since"):
        found.read(items[1])


def test_links_pipes_and_nested_archives_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (tmp_path / "secret.cif").write_text(NACL.to(fmt="cif"))
    (folder / "good.cif").write_text(NACL.to(fmt="cif"))
    (folder / "inside.cif").symlink_to(folder / "good.cif")
    (folder / "outside.cif").symlink_to(tmp_path / "secret.cif")
    (folder / "broken.cif").symlink_to(tmp_path / "absent.cif")
    os.mkfifo(folder / "pipe.cif")
    archive(folder / "more.zip", {"a.cif": b"x"})
    records, refused = load(folder)
    assert sorted(records) == ["good", "inside"]
    assert sorted(refused) == ["broken", "more.zip", "outside", "pipe"]
    assert "leads out of the folder" in refused["outside"] and "archive in a folder" in refused["more.zip"]


def test_hostile_members_are_quarantined(tmp_path: Path) -> None:
    good = NACL.to(fmt="cif").encode()
    content = {"a.cif": good, "../../up.cif": good, "/abs.cif": good, "bin.cif": bytes(range(256)), "in.zip": b"PK"}
    for suffix in (".zip", ".tar.gz"):
        records, refused = load(archive(tmp_path / f"x{suffix}", content))
        assert list(records) == ["a"] and len(refused) == 4
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"x.zip", f"x{suffix}"})


def test_a_truncated_packed_file_keeps_its_good_frames(tmp_path: Path) -> None:
    data = gzip.compress((FRAME * 5000).encode() + random.Random(0).randbytes(3000))
    (tmp_path / "x.xyz.gz").write_bytes(data[: len(data) - 3500])
    records, refused = load(tmp_path / "x.xyz.gz")
    assert 0 < len(records) < 5000 and list(refused) == [f"x/{len(records)}"]
    assert list(records) == [f"x/{number}" for number in range(len(records))]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cut, overwrite, repeat or swell a file at random places."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(out) + 1)
        hostile = [b"1e400", b"-999999999", b"999999999999", b"nan", b"\0", b"\xff\xfe", b"\n", b'"', b"[[", b"}", b"'"]
        match rng.randrange(5):
            case 0:
                del out[at:]
            case 1:
                out[at : at + rng.randrange(9)] = rng.choice(hostile)
            case 2:
                out[at : at + 1] = rng.randbytes(1)
            case 3:
                out[at:at] = out[at : at + 200] * 3
            case 4:
                del out[at : at + rng.randrange(60)]
    return bytes(out)


def seeds(tmp_path: Path) -> dict[str, bytes]:
    write(tmp_path / "s.xyz", [random_atoms(seed) for seed in range(3)], format="extxyz")
    for name in ("s.db", "s.json"):
        connect(tmp_path / name).write(random_atoms(1), gap=1.0)
    cif = SI.to(fmt="cif", symprec=0.1).encode()
    found = {path.name: path.read_bytes() for path in (tmp_path / "s.xyz", tmp_path / "s.db", tmp_path / "s.json")}
    found |= {"s.cif": cif, "two.cif": cif + NACL.to(fmt="cif").encode(), "POSCAR": NACL.to(fmt="poscar").encode()}
    found["m.json"] = json.dumps({"a": NACL.as_dict(), "b": {"structure": SI.as_dict(), "energy": 1}}).encode()
    found["s.cif.gz"] = gzip.compress(cif)
    for name in ("s.zip", "s.tar.gz", "s.tar"):
        found[name] = archive(tmp_path / name, {"a.cif": cif, "b/s.xyz": found["s.xyz"]}).read_bytes()
    return found


@pytest.mark.parametrize(("rounds", "seed"), [(25, 7), pytest.param(1000, 8, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(tmp_path: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    (tmp_path / "seeds").mkdir()
    (tmp_path / "mutants").mkdir()
    outcomes = {"read": 0, "refused": 0, "whole": 0}
    for name, data in seeds(tmp_path / "seeds").items():
        path = tmp_path / "mutants" / name
        for _ in range(rounds):
            path.write_bytes(mutated(data, rng))
            try:
                records, refused = load(path, labels={"energy_ev": "energy"})
                outcomes["read"] += len(records)
                outcomes["refused"] += len(refused)
            except DataError:
                outcomes["whole"] += 1
            assert list(path.parent.iterdir()) == [path]
        path.unlink()
    print(f"{rounds} mutants of each seed: {outcomes}")
    assert min(outcomes.values()) > rounds


# what there is to read in some of them, and the rest refused
READABLE = {"POSCAR_long", "blank_lines.cif", "comment.xyz", "formula.cif", "operation.cif", "same_operations.cif"}


def test_hostile_files_cost_little(tmp_path: Path) -> None:
    write_all(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    command = [sys.executable, "-m", "tests.unit.shards.sources.hostile_structures", str(tmp_path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    print(f"{len(rows)} files, at most {max(row[1] for row in rows):.2f} s of CPU and {rows[-1][2]:.0f} MB")
    assert {row[0] for row in rows} == before and len(rows) > 35
    for name, seconds, megabytes, count, reason in rows:
        # 2 s on a machine of its own; processes that share its caches may double that
        assert seconds < 4.0 and megabytes < 256, (name, seconds, megabytes)
        assert (count == 1 and not reason) if name in READABLE else (count == 0 and reason), (name, count, reason)
    assert {path.name for path in tmp_path.iterdir()} == before | {"harmless"}
