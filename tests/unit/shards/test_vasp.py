"""VASP's files: what is read of them against pymatgen and against what was written, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Chgcar, Poscar, Vasprun

from shards.errors import DataError
from shards.formats.chgcar import read_chgcar
from shards.formats.vasprun import read_vasprun
from shards.sources import Item, Record, source
from shards.sources.vasp import classify, read_complete_dos

RUNS = {"Al": 3.0, "LiF": 10.0, "lifepo4": 607.0}
CELL = Structure(Lattice([[4.0, 0.2, 0], [0.1, 3.5, 0], [0, 0.3, 5.0]]), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture
def dft(shared_data: Path) -> Path:
    return shared_data / "pymatgen_dft"


def records(path: Path, **options: object) -> dict[str, Record]:
    made = source({"kind": "vasp", "path": str(path), **options})
    return {item.id: made.read(item) for item in made.items()}


def grid(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 50.0, shape)


def write_chgcar(path: Path, total: np.ndarray, spin: np.ndarray | None = None, cell: Structure = CELL) -> Path:
    data = {"total": total} if spin is None else {"total": total, "diff": spin}
    Chgcar(Poscar(cell), data).write_file(str(path))
    return path


# --- CHGCAR --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spin", "nospin"])
def test_a_real_chgcar_is_read_as_by_pymatgen(dft: Path, name: str) -> None:
    path = dft / f"CHGCAR.{name}.gz"
    structure, density = read_chgcar(path)
    reference = Chgcar.from_file(str(path))
    np.testing.assert_array_equal(density, reference.data["total"] / structure.volume)
    assert structure == reference.structure
    # lithium with one valence electron
    assert density.mean() * structure.volume == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("shape", [(4, 6, 5), (3, 3, 3), (7, 2, 2)])
def test_only_the_total_is_read_and_its_axes_stay(tmp_path: Path, shape: tuple[int, int, int], spin: bool) -> None:
    total = grid(shape)
    path = write_chgcar(tmp_path / "CHGCAR", total, grid(shape, 1) if spin else None)
    structure, density = read_chgcar(path)
    np.testing.assert_allclose(density * structure.volume, total, rtol=1e-10)
    assert structure.volume == pytest.approx(CELL.volume, rel=1e-5)


def test_numbers_that_begin_and_end_anywhere_in_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = grid((4, 6, 5))
    path = write_chgcar(tmp_path / "CHGCAR", total, grid((4, 6, 5), 1))
    for size in (19, 64, 100, 1001):
        monkeypatch.setattr("shards.formats.chgcar.CHUNK_BYTES", size)
        structure, density = read_chgcar(path)
        np.testing.assert_allclose(density * structure.volume, total, rtol=1e-10)


def test_augmentation_occupancies_are_no_values(tmp_path: Path) -> None:
    path = write_chgcar(tmp_path / "CHGCAR", grid((4, 4, 4)))
    text = path.read_text().rstrip() + "\naugmentation occupancies   1  15\n 0.1 0.2 0.3\n"
    path.write_text(text)
    assert read_chgcar(path)[1].shape == (4, 4, 4)


def test_a_comment_that_looks_like_another_format(tmp_path: Path) -> None:
    path = write_chgcar(tmp_path / "CHGCAR", grid((2, 2, 2)))
    lines = path.read_text().splitlines()
    for comment in ("data_me", "{", "_cell_length_a 3", ""):
        path.write_text("\n".join([comment, *lines[1:]]) + "\n")
        assert read_chgcar(path)[0].composition == CELL.composition


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "fewer values"),
        (lambda text: text[:200], "no structure|cannot be read|grid"),
        (lambda text: text.rstrip()[:-19], "fewer values"),
        (lambda text: text.rstrip() + " 0.5E+00\n", "more values"),
        (lambda text: text.replace("\n4 6 5\n", "\n4 6 4\n"), "more values"),
        (lambda text: text.replace("\n4 6 5\n", "\n4 6\n"), "not three numbers"),
        (lambda text: text.replace("\n4 6 5\n", "\n4 6 -5\n"), "not three numbers"),
        (lambda text: text.replace("\n4 6 5\n", "\n4000 6000 5000\n"), "points, more than"),
        (lambda text: text.replace("\n4 6 5\n", "\n99999999999 99999999999 99999999999\n"), "points, more than"),
        (lambda text: text[:-200] + " ****************" + text[-180:], "no number"),
        (lambda text: text[:-200] + " nan" + text[-180:], "NaN|fewer|no number"),
    ],
)
def test_damaged_chgcars_are_refused(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    path = write_chgcar(tmp_path / "CHGCAR", grid((4, 6, 5)))
    text = path.read_text()
    path.write_text(re.sub(r"\n +4 +6 +5 *\n", "\n4 6 5\n", text))
    assert read_chgcar(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        read_chgcar(path)
    assert str(path) in str(caught.value.where)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_every_truncation_of_a_packed_chgcar_is_detected(tmp_path: Path, suffix: str) -> None:
    write = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    plain = write_chgcar(tmp_path / "CHGCAR", grid((6, 6, 6)))
    packed = write(plain.read_bytes())
    path = tmp_path / f"CHGCAR{suffix}"
    path.write_bytes(packed)
    assert read_chgcar(path)[1].shape == (6, 6, 6)
    # the last bytes are checksums and padding behind the numbers, which are all there
    for length in np.linspace(0, len(packed) * 0.97, 30).astype(int):
        path.write_bytes(packed[:length])
        with pytest.raises(DataError):
            read_chgcar(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    plain = write_chgcar(tmp_path / "CHGCAR", grid((2, 2, 2))).read_text()
    head = plain[: plain.rindex("2   2   2") if "2   2   2" in plain else plain.rindex("2 2 2")]
    path = tmp_path / "CHGCAR.gz"
    with gzip.open(path, "wb") as file:
        file.write((head + "200 200 200\n").encode())
        for _ in range(100):
            file.write(b" " * 1_000_000)
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match="unpacks to more"):
        read_chgcar(path)


# --- vasprun.xml ---------------------------------------------------------------------------------


def by_pymatgen(path: Path) -> Vasprun:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Vasprun(str(path), parse_potcar_file=False)


@pytest.mark.parametrize("name", RUNS)
def test_a_real_vasprun_is_read_as_by_pymatgen(dft: Path, name: str) -> None:
    path = dft / f"vasprun.{name}.xml.gz"
    run, reference = read_vasprun(path), by_pymatgen(path)
    assert run.structure == reference.final_structure
    assert run.energy_ev == pytest.approx(float(reference.final_energy), abs=1e-8)
    gap, _, valence, _ = reference.eigenvalue_band_properties
    assert run.band_gap_ev == pytest.approx(float(gap), abs=1e-10) and run.vbm_ev == pytest.approx(float(valence))
    assert run.dos is not None and run.dos.zero_ev == reference.efermi
    assert run.dos.atoms == len(reference.final_structure)
    integrated = sum(reference.idos.densities.values())
    np.testing.assert_allclose(
        np.cumsum(run.dos.states_per_ev * np.diff(reference.idos.energies)), integrated[1:] - integrated[0], atol=1e-9
    )


@pytest.mark.parametrize("name", RUNS)
def test_the_states_below_the_fermi_energy_are_the_electrons(dft: Path, name: str) -> None:
    dos = read_vasprun(dft / f"vasprun.{name}.xml.gz").dos
    assert dos is not None
    # an insulator's count does not change inside of its gap
    until = dos.zero_ev + (4.0 if name == "LiF" else 0.0)
    below = dos.energy_ev < until
    energy = np.append(dos.energy_ev[below], until)
    states = np.append(dos.states_per_ev[below], np.interp(until, dos.energy_ev, dos.states_per_ev))
    counted = np.trapezoid(states, energy)
    print(f"{name}: {counted:.4f} of {RUNS[name]:g} electrons below the Fermi energy")
    assert counted == pytest.approx(RUNS[name], rel=1e-3)


def run_text(dft: Path) -> str:
    return gzip.decompress((dft / "vasprun.LiF.xml.gz").read_bytes()).decode("latin1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "no complete XML"),
        (lambda text: text[:-12], "no complete XML"),
        (lambda text: text.replace("<modeling>", '<!DOCTYPE a [<!ENTITY b "c">]><modeling>'), "document type"),
        (
            lambda text: text.replace("<modeling>", '<!DOCTYPE a SYSTEM "file:///etc/passwd"><modeling>'),
            "document type",
        ),
        (lambda text: text.replace("<modeling>", "<modeling>&bomb;"), "no complete XML"),
        (lambda text: text.replace("<r>   -45.7781", "<r>   ********"), "could not convert"),
        (lambda text: text.replace("<v>       0.50000000       0.5", "<v>       0.5"), "cannot be read"),
        (lambda text: text.replace("<generator>", "<a>" * 40 + "</a>" * 40 + "<generator>"), "nested"),
        (lambda text: text.replace('<i name="efermi">     -1.23130125 </i>', ""), "no Fermi energy"),
        (lambda text: text.replace('efermi">', 'efermi">' + "9\n" * 200_000), "longer than VASP writes"),
    ],
)
def test_damaged_and_hostile_vaspruns(dft: Path, tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    path = tmp_path / "vasprun.xml"
    changed = change(run_text(dft))
    assert changed != run_text(dft)
    path.write_text(changed, encoding="latin1")
    with pytest.raises(DataError, match=message) as caught:
        read_vasprun(path)
    assert caught.value.where == path


def test_an_xml_bomb_is_refused(dft: Path, tmp_path: Path) -> None:
    path = tmp_path / "vasprun.xml.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"<modeling>")
        for _ in range(60):
            file.write(b" " * 1_000_000)
    with pytest.raises(DataError, match="unpacks to more"):
        read_vasprun(path)


def test_states_on_other_k_points_are_left_out(dft: Path, tmp_path: Path) -> None:
    text = run_text(dft)
    block = text[text.index("  <dos>") : text.index("  </dos>") + len("  </dos>\n")]
    path = tmp_path / "vasprun.xml"
    path.write_text(text.replace(block, block + block.replace("<dos>", '<dos comment="kpoints_opt">')))
    dos, reference = read_vasprun(path).dos, read_vasprun(dft / "vasprun.LiF.xml.gz").dos
    assert dos is not None and reference is not None
    np.testing.assert_array_equal(dos.states_per_ev, reference.states_per_ev)


def test_only_the_last_ionic_step_counts(dft: Path, tmp_path: Path) -> None:
    text = run_text(dft)
    step = text[text.index(" <calculation>") : text.index(" </calculation>") + len(" </calculation>\n")]
    earlier = step.replace("  -1.2683 ", "   9.9999 ").replace("-9.64589684", "-1.00000000")
    assert earlier != step
    path = tmp_path / "vasprun.xml"
    path.write_text(text.replace(step, earlier + step))
    run, reference = read_vasprun(path), read_vasprun(dft / "vasprun.LiF.xml.gz")
    assert (run.band_gap_ev, run.vbm_ev, run.energy_ev) == (8.7259, -1.2683, -9.64589684)
    assert run.dos is not None and reference.dos is not None
    np.testing.assert_array_equal(run.dos.states_per_ev, reference.dos.states_per_ev)


# --- CompleteDos ---------------------------------------------------------------------------------


def test_a_real_complete_dos(dft: Path) -> None:
    path = dft / "complete_dos.json.gz"
    dos, structure = read_complete_dos(path)
    table = json.loads(gzip.decompress(path.read_bytes()))
    assert structure is not None and structure.composition.reduced_formula == "LiFe4(PO4)4"
    assert dos.atoms == 25 and dos.zero_ev == table["efermi"]
    np.testing.assert_array_equal(dos.states_per_ev, np.array(table["densities"]["1"]) + table["densities"]["-1"])
    # Li 1, Fe 8, P 5, O 6 valence electrons
    below = dos.energy_ev < dos.zero_ev + 0.2
    counted = np.trapezoid(dos.states_per_ev[below], dos.energy_ev[below])
    print(f"LiFe4(PO4)4: {counted:.4f} of 149 electrons below the Fermi energy")
    assert counted == pytest.approx(1 + 4 * 8 + 4 * 5 + 16 * 6, rel=1e-4)


def test_json_and_xml_of_one_calculation_agree(dft: Path, tmp_path: Path) -> None:
    path = dft / "vasprun.lifepo4.xml.gz"
    (tmp_path / "run.json").write_text(json.dumps(by_pymatgen(path).complete_dos.as_dict()))
    dos, structure = read_complete_dos(tmp_path / "run.json")
    run = read_vasprun(path)
    assert run.dos is not None and structure == run.structure
    assert (dos.zero_ev, dos.atoms) == (run.dos.zero_ev, run.dos.atoms)
    energy = run.dos.energy_ev
    difference = np.interp(energy, dos.energy_ev, dos.states_per_ev) - run.dos.states_per_ev
    assert np.abs(difference).max() < 0.02 * run.dos.states_per_ev.max()


def dos_table(**changes: object) -> dict:
    energy = np.linspace(-5, 5, 201)
    up = np.where((energy > -4) & (energy < -1), 1.0, 0.0) + np.where(energy > 2, 0.5, 0.0)
    table = {
        "energies": energy.tolist(),
        "densities": {"1": up.tolist(), "-1": up.tolist()},
        "efermi": 0.5,
        "structure": CELL.as_dict(),
    }
    return {**table, **changes}


def test_the_zero_is_the_fermi_energy_or_the_band_edge(dft: Path, tmp_path: Path) -> None:
    path = tmp_path / "dos.json"
    path.write_text(json.dumps(dos_table()))
    assert read_complete_dos(path)[0].zero_ev == 0.5
    dos, _ = read_complete_dos(path, zero="band_edge")
    last = dos.energy_ev[(dos.energy_ev < 0) & (dos.states_per_ev > 0)].max()
    assert dos.zero_ev == pytest.approx(last, abs=0.05)
    metal = dos_table(efermi=0.51, densities={"1": np.linspace(1, 2, 201).tolist()})
    path.write_text(json.dumps(metal))
    assert read_complete_dos(path, zero="band_edge")[0].zero_ev == 0.51
    for name, zero in (("LiF", -1.2683), ("Al", 7.93802192)):
        shutil.copy(dft / f"vasprun.{name}.xml.gz", tmp_path)
        assert records(tmp_path, zero="band_edge")[name].dos.zero_ev == zero  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (dos_table(densities={"1": [1.0] * 201, "-1": [-1.0] * 201}), "spin channel .* negative"),
        (dos_table(densities={"1": [1.0] * 200}), "no density of states"),
        (dos_table(efermi=None), "no density of states"),
        ({"@module": "os", "@class": "system", "args": ["true"]}, "no density of states"),
        ([1, 2], "no density of states"),
    ],
)
def test_bad_densities_of_states_are_refused(tmp_path: Path, table: object, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match=message):
        read_complete_dos(path)
    path.write_text(json.dumps(table)[:-5])
    with pytest.raises(DataError, match="JSON"):
        read_complete_dos(path)


# --- the source ----------------------------------------------------------------------------------


def test_loose_files_are_grouped_by_name(dft: Path) -> None:
    found = records(dft, labels=["band_gap_ev", "is_metal", "energy_ev_per_atom"])
    assert sorted(found) == ["Al", "LiF", "complete_dos", "lifepo4", "nospin", "spin"]
    have = {id: (record.dos is not None, record.charge_density is not None) for id, record in found.items()}
    assert have["Al"] == have["complete_dos"] == (True, False) and have["spin"] == (False, True)
    assert all(record.structure is not None and record.tags["formula"] for record in found.values())
    assert found["LiF"].labels == {"band_gap_ev": 8.7259, "is_metal": 0.0, "energy_ev_per_atom": -9.64589684 / 2}
    assert found["Al"].labels["is_metal"] == 1.0 and found["complete_dos"].labels == {}
    assert records(dft)["LiF"].labels == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CHGCAR", ("CHGCAR", "")),
        ("CHGCAR.gz", ("CHGCAR", "")),
        ("CHGCAR.Li0.5CoO2.xz", ("CHGCAR", "Li0.5CoO2")),
        ("Li0.5CoO2.CHGCAR.bz2", ("CHGCAR", "Li0.5CoO2")),
        ("vasprun.xml", ("vasprun", "")),
        ("vasprun.mp-1.xml.gz", ("vasprun", "mp-1")),
        ("mp-1.vasprun.xml", ("vasprun", "mp-1")),
        ("POSCAR.NaCl.vasp", ("POSCAR", "NaCl")),
        ("mp-1.json.gz", ("dos", "mp-1")),
        ("OUTCAR", None),
        ("AECCAR0.gz", None),
        ("vasprun", None),
        ("notes.txt", None),
    ],
)
def test_names_say_kind_and_id(name: str, expected: tuple[str, str] | None) -> None:
    assert classify(name) == expected


def calculation(folder: Path, dft: Path, cell: Structure) -> None:
    folder.mkdir(parents=True)
    shutil.copy(dft / "vasprun.LiF.xml.gz", folder / "vasprun.xml.gz")
    Poscar(cell).write_file(str(folder / "POSCAR"))
    write_chgcar(folder / "CHGCAR", grid((4, 4, 4)), cell=cell)
    (folder / "INCAR").write_text("ISPIN = 2\n")
    (folder / "custodian.json").write_text("[]")


@pytest.fixture
def lif(dft: Path) -> Structure:
    structure = read_vasprun(dft / "vasprun.LiF.xml.gz").structure
    assert structure is not None
    return structure


def test_folders_are_calculations(tmp_path: Path, dft: Path, lif: Structure) -> None:
    calculation(tmp_path / "mp-1" / "static", dft, lif)
    calculation(tmp_path / "mp-2", dft, lif)
    (tmp_path / "empty").mkdir()
    relaxed = lif.copy()
    relaxed.apply_strain(0.01)
    Poscar(relaxed).write_file(str(tmp_path / "mp-2" / "CONTCAR"))
    found = records(tmp_path)
    assert list(found) == ["mp-1/static", "mp-2"]
    for record in found.values():
        assert record.dos is not None and record.charge_density is not None
    assert found["mp-1/static"].structure == lif
    assert found["mp-2"].structure is not None and found["mp-2"].structure.volume == pytest.approx(relaxed.volume)
    only = records(tmp_path, parts=["dos"])["mp-2"]
    assert only.structure is None and only.charge_density is None and only.dos is not None


def test_a_structure_comes_from_whatever_has_one(dft: Path) -> None:
    found = records(dft, parts=["structure"])
    assert all(record.structure is not None for record in found.values()) and len(found) == 6
    assert all(record.dos is None and record.charge_density is None for record in found.values())


def test_a_single_calculation_is_called_by_its_folder(tmp_path: Path, dft: Path, lif: Structure) -> None:
    calculation(tmp_path / "run7", dft, lif)
    (tmp_path / "run7" / "custodian.json").unlink()
    assert list(records(tmp_path / "run7")) == ["run7"]


def test_files_of_different_crystals_quarantine_the_record(tmp_path: Path, dft: Path) -> None:
    calculation(tmp_path / "mp-1", dft, CELL)
    with pytest.raises(DataError, match=r"different cells.*Na1 Cl1") as caught:
        records(tmp_path)
    assert caught.value.where == "mp-1"


def test_several_files_of_a_kind_quarantine_the_record(tmp_path: Path, dft: Path, lif: Structure) -> None:
    calculation(tmp_path / "mp-1", dft, lif)
    shutil.copy(dft / "vasprun.Al.xml.gz", tmp_path / "mp-1" / "vasprun.xml.relax1.gz")
    # VASP's own name counts before others
    assert records(tmp_path)["mp-1"].tags["formula"] == "LiF"
    (tmp_path / "mp-1" / "vasprun.xml.gz").rename(tmp_path / "mp-1" / "vasprun.xml.relax2.gz")
    with pytest.raises(DataError, match="2 files of one kind"):
        records(tmp_path)


def test_sources_without_files_are_errors(tmp_path: Path, dft: Path, lif: Structure) -> None:
    with pytest.raises(DataError, match="no such folder"):
        records(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no output of VASP"):
        records(tmp_path)
    calculation(tmp_path / "a", dft, lif)
    write_chgcar(tmp_path / "CHGCAR.a", grid((2, 2, 2)))
    with pytest.raises(DataError, match="loose files and of a folder"):
        records(tmp_path)


def test_items_are_cheap_stable_and_know_changes(tmp_path: Path, dft: Path, lif: Structure) -> None:
    calculation(tmp_path / "mp-1", dft, lif)
    made = pickle.loads(pickle.dumps(source({"kind": "vasp", "path": str(tmp_path)})))
    items = list(made.items())
    assert items == list(made.items()) and all(isinstance(item, Item) for item in items)
    json.dumps([item.ref for item in items])
    write_chgcar(tmp_path / "mp-1" / "CHGCAR", grid((5, 4, 4)), cell=lif)
    assert [item.stamp for item in made.items()] != [item.stamp for item in items]
    assert made.read(items[0]).charge_density.shape == (5, 4, 4)


def test_pipes_and_links_that_lead_out_are_quarantined(tmp_path: Path) -> None:
    """A pipe would be waited for without end, and a parser's message would quote what a link leads to."""
    (tmp_path / "secret").write_text("SECRET\n" * 20)
    for name in ("pipe", "link"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    os.mkfifo(tmp_path / "runs" / "pipe" / "CHGCAR")
    (tmp_path / "runs" / "link" / "POSCAR").symlink_to(tmp_path / "secret")
    made = source({"kind": "vasp", "path": str(tmp_path / "runs")})
    for item, reason in zip(made.items(), ["leads out of the folder", "no regular file"], strict=True):
        with pytest.raises(DataError, match=reason) as caught:
            made.read(item)
        assert "SECRET" not in str(caught.value)
