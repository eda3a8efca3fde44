"""Texts of structures, good and hostile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser, CifWriter

from shards.errors import DataError
from shards.formats.poscar import poscar_atoms
from shards.formats.structure import parse_described, parse_structure, read_structure

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


XYZ = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 energy=-1.5 tag="a b"\nNa 0 0 0\nCl 2 2 2\n'


def test_extended_xyz_is_told_by_its_lattice() -> None:
    structure, info = parse_described(XYZ)
    assert structure.formula == "Na1 Cl1" and info == {"energy": -1.5, "tag": "a b"}
    with pytest.raises(DataError):
        parse_structure(XYZ.replace("Lattice=", "Cell="))


def test_what_stands_beside_a_json_structure_is_kept() -> None:
    table = {**NACL.as_dict(), "properties": {"u": 1, "v": 2}}
    assert parse_described(json.dumps(table))[1] == {"u": 1, "v": 2}
    assert parse_described(json.dumps({"v": 3, "structure": table}))[1] == {"u": 1, "v": 3}


@pytest.mark.parametrize(
    "count", ["999999999", "+999999999", "999_999_999", "1 999999999 # comment", "999999999 -999999998"]
)
def test_counts_of_a_poscar_are_bounded_in_every_spelling(count: str) -> None:
    for text in (
        POSCAR.replace("1 1\n", f"{count}\n"),
        "\n \n\n" + POSCAR.split("\n", 1)[1].replace("1 1\n", f"{count}\n"),
    ):
        with pytest.raises(DataError, match="atoms, more than 1000"):
            parse_structure(text)


def test_a_poscar_with_many_lines_of_names_is_counted_as_its_parser_does() -> None:
    names = ["Fe", "Cr"] * 15
    rows = "".join(f"{i / 30} 0 {i / 30}\n" for i in range(30))
    header = "x\n1.0\n30 0 0\n0 30 0\n0 0 30\n"
    text = f"{header}{' '.join(names[:20])}\n{' '.join(names[20:])}\n{'1 ' * 20}\n{'1 ' * 10}\nDirect\n{rows}"
    assert poscar_atoms(text) == 30 == len(parse_structure(text))
    # rows of whole numbers are coordinates, not counts
    cubes = "".join(f"{25 * (i % 3)} {25 * (i // 3)} 0\n" for i in range(9))
    cartesian = f"x\n1.0\n90 0 0\n0 90 0\n0 0 90\nFe\n9\nCartesian\n{cubes}"
    assert poscar_atoms(cartesian) == 9 == len(parse_structure(cartesian, max_atoms=9))


CIF = NACL.to(fmt="cif")


def test_a_cif_with_a_block_of_authors_and_text_fields() -> None:
    paper = "data_global\n_publ_author 'A. N. Other'\n_text\n;\ndata_ is a word here\n\n_atom_site_label too\n;\n"
    for text in (paper + CIF, CIF + "\n" + paper, CIF.replace("\n", "\n\n"), CIF.replace("data_NaCl", "DATA_NaCl")):
        assert len(parse_structure(text)) == 8


def symmetric(operations: list[str], sites: list[tuple[float, float, float]]) -> str:
    cell = "data_x\n_cell_length_a 30\n_cell_length_b 30\n_cell_length_c 30\n"
    angles = "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
    symmetry = "loop_\n_symmetry_equiv_pos_as_xyz\n" + "".join(f"'{operation}'\n" for operation in operations)
    columns = "loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
    return cell + angles + symmetry + columns + "".join(f"Na{i} {x} {y} {z}\n" for i, (x, y, z) in enumerate(sites))


def test_symmetry_is_counted_before_it_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    shifts = [f"x+{i}/100,y,z" for i in range(100)]
    sites = [(0.001, y / 40, y / 80) for y in range(40)]
    assert len(parse_structure(symmetric(shifts, sites[:9]))) == 900
    monkeypatch.setattr(CifParser, "parse_structures", None)
    with pytest.raises(DataError, match="4000 atoms"):
        parse_structure(symmetric(shifts, sites))
    with pytest.raises(DataError, match="500 symmetry operations"):
        parse_structure(symmetric(shifts * 5, sites))
    with pytest.raises(DataError, match="too many images"):
        parse_structure(symmetric(["x,y,z"] * 300, sites * 5))


def test_special_positions_do_not_count_as_many() -> None:
    spinel = Structure.from_spacegroup(
        "Fd-3m", Lattice.cubic(8.08), ["Mg", "Al", "O"], [[0.125] * 3, [0.5] * 3, [0.2624] * 3]
    )
    text = str(CifWriter(spinel, symprec=0.01))
    assert text.count("\n  ") > 192
    assert len(parse_structure(text, max_atoms=56)) == 56
    with pytest.raises(DataError, match="56 atoms"):
        parse_structure(text, max_atoms=55)
