"""Sources: files of users, good and hostile, and the shipped data set."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from shards.errors import DataError
from shards.sources.embedded import embedded_record
from shards.sources.structures import parse_structure, read_dos, read_structure, structure_record

NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
POSCAR = "NaCl\n1.0\n4 0 0\n0 4 0\n0 0 4\nNa Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"
JSON = json.dumps(NACL.as_dict())


@pytest.mark.parametrize(
    ("fmt", "name"), [("cif", "x.cif"), ("poscar", "POSCAR"), ("json", "x.json"), ("cif", "x.txt")]
)
def test_formats_are_told_apart_by_content(tmp_path: Path, fmt: str, name: str) -> None:
    text = NACL.to(fmt=fmt)
    (tmp_path / name).write_text(text)
    for structure in (
        read_structure(tmp_path / name),
        read_structure(str(tmp_path / name)),
        read_structure("\ufeff" + text),
    ):
        assert structure.composition == NACL.composition
        assert structure.volume == pytest.approx(NACL.volume, rel=1e-5)


def test_a_wrapped_json_structure_is_found(tmp_path: Path) -> None:
    (tmp_path / "mp.json").write_text(json.dumps({"material_id": "mp-1", "structure": NACL.as_dict()}))
    assert len(read_structure(tmp_path / "mp.json")) == 8


def test_json_cannot_name_code(tmp_path: Path) -> None:
    table = NACL.as_dict()
    table["sites"][0]["properties"] = {"x": {"@module": "os", "@class": "system", "command": "touch hit"}}
    (tmp_path / "x.json").write_text(json.dumps(table))
    structure = read_structure(tmp_path / "x.json")
    assert structure.site_properties == {}


TWO_BLOCKS = (
    NACL.to(fmt="cif").replace("data_NaCl", "data_a") + "\n" + NACL.to(fmt="cif").replace("data_NaCl", "data_b")
)
HOSTILE = {
    "empty": (" \n \n", "empty"),
    "prose": ("Dear Sir,\nplease find attached\nmy crystal.\n", "no structure"),
    "binary-like": ("\x00\x01\n" * 20, "cannot be read"),
    "json of something else": ('{"a": 1,\n"b": 2}', "no pymatgen structure"),
    "broken json": (JSON[:50] + "\n" + JSON[50:-20], "cannot be read"),
    "json list": ("[\n1]", "no pymatgen structure"),
    "cif without atoms": ("data_x\n_cell_length_a 3\n_cell_length_b 3\n", "cannot be read|structures"),
    "two structures": (TWO_BLOCKS, "2 structures"),
    "no element names": (POSCAR.replace("Na Cl\n", ""), "name its elements"),
    "a billion atoms": (POSCAR.replace("1 1\n", "1 999999999\n"), "more than 1000"),
    "a billion atoms without names": (POSCAR.replace("Na Cl\n1 1\n", "999999999 1\n"), "more than 1000"),
    "unknown element": (POSCAR.replace("Na Cl", "Qq Cl"), "cannot be read|no chemical"),
    "flat cell": (POSCAR.replace("0 0 4\n", "4 4 0\n"), "cubic Angstrom|cannot be read"),
    "nan": (POSCAR.replace("0.5 0.5 0.5", "nan 0 0"), "NaN|cannot be read"),
    "too long": ("x\n" * 3_000_000, "5 MB"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_data_errors(name: str) -> None:
    text, message = HOSTILE[name]
    with pytest.raises(DataError, match=message):
        read_structure(text)


def test_hostile_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_structure(tmp_path / "absent.cif")
    with pytest.raises(DataError, match="no such file"):
        read_structure(tmp_path)
    with pytest.raises(DataError):
        read_structure("x" * 5000)
    with pytest.raises(DataError):
        read_structure("a\0b")
    (tmp_path / "large.cif").write_text("#" * 6_000_000)
    with pytest.raises(DataError, match=r"6\.0 MB"):
        read_structure(tmp_path / "large.cif")
    (tmp_path / "packed.cif").write_bytes(b"\x1f\x8b\x08\xff\xfe")
    with pytest.raises(DataError, match="no text"):
        read_structure(tmp_path / "packed.cif")


def test_parsing_text_never_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "POSCAR").write_text(POSCAR)
    assert len(read_structure(str(tmp_path / "POSCAR"))) == 2
    with pytest.raises(DataError, match="no structure"):
        parse_structure(str(tmp_path / "POSCAR"))


def test_errors_name_the_file_and_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "POSCAR").write_text(POSCAR.replace("Na Cl\n", ""))
    with pytest.raises(DataError) as caught:
        read_structure(tmp_path / "POSCAR")
    assert str(tmp_path / "POSCAR") in str(caught.value) and caught.value.do


def test_too_many_atoms_are_refused_in_every_format() -> None:
    for fmt in ("cif", "poscar", "json"):
        with pytest.raises(DataError, match="more than 4"):
            read_structure(NACL.to(fmt=fmt), max_atoms=4)


def test_a_cif_with_partial_occupancy_is_refused() -> None:
    mixed = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    with pytest.raises(DataError, match="partially occupied"):
        read_structure(mixed.to(fmt="cif"))


def test_structure_record_is_tagged() -> None:
    record = structure_record(NACL, "Na1.0Cl", tags={"prototype": "rocksalt"})
    assert record.id == "Na1.0Cl"
    assert record.tags == {"formula": "NaCl", "chemical_system": "Cl-Na", "prototype": "rocksalt"}


def test_dos_files(tmp_path: Path) -> None:
    path = tmp_path / "dos.csv"
    path.write_text("# PBE\nenergy_ev, states_per_ev_atom\n-1.0,0.5\n\n0,1\n2.5, 2\n")
    dos = read_dos(path, zero_ev=0.3)
    assert dos.energy_ev.tolist() == [-1.0, 0.0, 2.5] and dos.states_per_ev.tolist() == [0.5, 1.0, 2.0]
    assert (dos.atoms, dos.zero_ev) == (1, 0.3)
    assert read_dos(path, atoms=7).atoms == 1
    path.write_text("energy_ev,states_per_ev_cell\n-1,4\n1,8\n")
    assert read_dos(path, atoms=4).atoms == 4
    with pytest.raises(DataError, match="number of atoms"):
        read_dos(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header ''"),
        ("E,dos\n1,2\n3,4\n", "header 'E,dos'"),
        ("energy_ev,states_per_ev_atom\n1,2\n", "1 rows"),
        ("energy_ev,states_per_ev_atom\n1,2\n2,x\n", "data row 2"),
        ("energy_ev,states_per_ev_atom\n1,2\n2,inf\n", "data row 2"),
        ("energy_ev,states_per_ev_atom\n1,2\n2,1,5\n", "data row 2"),
        ("energy_ev,states_per_ev_atom\n1,2\n0,2\n", "ascend"),
    ],
)
def test_bad_dos_files_are_data_errors(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dos.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_dos(tmp_path / "dos.csv")


def test_a_shipped_record_becomes_a_source_record() -> None:
    raw = SimpleNamespace(
        id="NaCl_rocksalt",
        formula="NaCl",
        prototype="rocksalt",
        lattice=NACL.lattice.matrix,
        species=[site.specie.symbol for site in NACL],
        frac_coords=NACL.frac_coords,
        text="",
        dos=(np.linspace(-10, 10, 601), np.ones(601)),
        charge_density=None,
        labels={"band_gap_ev": 5.0},
        tags={"spacegroup": "Fm-3m"},
    )
    record = embedded_record(raw)  # type: ignore[arg-type]
    assert record.text is None and record.charge_density is None
    assert record.dos is not None and record.dos.atoms == 8
    assert record.tags["chemical_system"] == "Cl-Na" and record.tags["prototype"] == "rocksalt"
    assert record.tags["spacegroup"] == "Fm-3m"
