"""One conversion: whatever a user has of a material gives the same sample; what is none, or two things, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from PIL import Image
from pymatgen.core import Lattice, Molecule, Structure
from pymatgen.electronic_structure.core import Spin
from pymatgen.electronic_structure.dos import Dos
from pymatgen.io.ase import AseAtomsAdaptor

from finetune.materials import several, to_known_sample
from shards.errors import DataError
from shards.features import feature
from shards.schema import ModalitySpec, Sample
from shards.sources.base import Record

STEPS: dict[str, dict[str, Any]] = {
    "crystal": {"step": "crystal", "potentials": False},
    "dos": {"step": "dos", "start": -2.0, "stop": 2.0, "points": 41, "min_coverage": 0.0, "scale": "area"},
    "text": {"step": "text"},
    "smiles": {"step": "smiles"},
    "micrograph": {"step": "image", "size": 8},
    "process": {"step": "table", "columns": ["voltage_kv"], "categorical": {"solvent": ["DMF", "water"]}},
    "descriptors": {"step": "vector", "array": "descriptors", "length": 3},
}
SPECS: dict[str, ModalitySpec] = {name: feature(table).spec(name) for name, table in STEPS.items()}
ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
ENERGY = np.linspace(-3, 3, 121)
STATES = np.exp(-(ENERGY**2))
PIXELS = np.arange(96, dtype=np.uint8).reshape(8, 12)


def sample(material: Any, *names: str) -> Sample:
    return to_known_sample(material, {name: SPECS[name] for name in names or SPECS})


def structures(folder: Path) -> dict[str, Any]:
    cif, poscar = folder / "a.cif", folder / "POSCAR"
    ROCK_SALT.to(str(cif), fmt="cif")
    ROCK_SALT.to(str(poscar), fmt="poscar")
    return {
        "structure": ROCK_SALT,
        "atoms": AseAtomsAdaptor.get_atoms(ROCK_SALT),
        "cif": cif,
        "cif path as text": str(cif),
        "cif text": cif.read_text(),
        "poscar": poscar,
        "poscar text": poscar.read_text(),
        "dict": ROCK_SALT.as_dict(),
        "json text": ROCK_SALT.to_json(),
        "record": Record(id="x", structure=ROCK_SALT),
        "mapping": {"structure": ROCK_SALT},
        "mapping of atoms": {"structure": AseAtomsAdaptor.get_atoms(ROCK_SALT)},
        "mapping of a path": {"structure": str(cif)},
        "mapping of a dict": {"structure": ROCK_SALT.as_dict()},
    }


def test_every_spelling_of_a_crystal_is_the_same_crystal(tmp_path: Path) -> None:
    expected = sample(ROCK_SALT, "crystal").arrays["crystal"]
    for spelling, material in structures(tmp_path).items():
        found = sample(material)
        assert found.modalities == {"crystal"}, spelling
        assert spelling == "record" or found.tags["formula"] == "NaCl"
        lengths = np.sort(np.linalg.norm(found.arrays["crystal"]["edge_vector"], axis=1))
        np.testing.assert_allclose(lengths, np.sort(np.linalg.norm(expected["edge_vector"], axis=1)), atol=1e-3)
        assert sorted(found.arrays["crystal"]["atomic_numbers"]) == [11, 17]


def test_every_spelling_of_a_dos_is_the_same_dos(tmp_path: Path) -> None:
    rows = "\n".join(f"{e},{s}" for e, s in zip(ENERGY, STATES, strict=True))
    (tmp_path / "dos.csv").write_text(f"energy_ev,states_per_ev_atom\n{rows}\n")
    dos = Dos(0.0, ENERGY, {Spin.up: STATES / 2, Spin.down: STATES / 2})
    expected = sample((ENERGY, STATES), "dos").arrays["dos"]["intensity"]
    for material in (
        [list(ENERGY), list(STATES)], np.stack([ENERGY, STATES]), tmp_path / "dos.csv", str(tmp_path / "dos.csv"), dos,
        {"dos": (ENERGY, STATES)}, {"dos": dos}, {"dos": tmp_path / "dos.csv"}, dos.as_dict(),
    ):  # fmt: skip
        found = sample(material)
        assert found.modalities == {"dos"}
        np.testing.assert_allclose(found.arrays["dos"]["intensity"], expected, rtol=1e-4, atol=1e-6)


def test_a_dos_of_unknown_size_is_known_up_to_a_factor_and_with_its_structure_absolute() -> None:
    absolute = {"dos": feature({**STEPS["dos"], "scale": "absolute"}).spec("dos")}
    dos = Dos(0.0, ENERGY, {Spin.up: STATES * len(ROCK_SALT)})
    with pytest.raises(DataError, match="up to a factor"):
        to_known_sample(dos, absolute)
    per_atom = to_known_sample({"structure": ROCK_SALT, "dos": dos}, absolute).arrays["dos"]["intensity"]
    plain = to_known_sample((ENERGY, STATES), absolute).arrays["dos"]["intensity"]
    np.testing.assert_allclose(per_atom, plain, rtol=1e-5)


def test_every_spelling_of_a_picture_is_the_same_picture(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    expected = sample(PIXELS, "micrograph").arrays["micrograph"]["pixels"]
    transparent = np.dstack([PIXELS, PIXELS, PIXELS, np.full_like(PIXELS, 9)])
    for material in (
        Image.fromarray(PIXELS), tmp_path / "a.png", str(tmp_path / "a.png"), {"image": PIXELS}, {"image": [PIXELS]},
        transparent, Image.fromarray(transparent), Image.fromarray(PIXELS).convert("P"),
    ):  # fmt: skip
        found = sample(material)
        assert found.modalities == {"micrograph"}
        np.testing.assert_array_equal(found.arrays["micrograph"]["pixels"], expected)
    assert len(sample({"image": [PIXELS, tmp_path / "a.png"]}).arrays["micrograph"]["pixels"]) == 2


def test_a_row_of_a_table_is_read_by_its_columns() -> None:
    row = {"voltage_kv": 12, "solvent": "water", "unknown": None, "remark": "windy"}
    frame = pd.DataFrame([row, {**row, "voltage_kv": np.nan}])
    for material in (row, pd.Series(row), frame.iloc[0], {"table": row}, {"table": pd.Series(row)}):
        value = sample(material, "process").arrays["process"]
        assert value["numeric"].tolist() == [12.0] and value["categories"].tolist() == [2]
    missing = sample(frame.iloc[1], "process").arrays["process"]
    assert missing["known"].tolist() == [0]


def test_a_smiles_is_a_smiles() -> None:
    assert sample("CCO").modalities == {"smiles"} == sample({"smiles": "OCC"}).modalities
    np.testing.assert_array_equal(
        sample("CCO").arrays["smiles"]["tokens"], sample({"smiles": "OCC"}).arrays["smiles"]["tokens"]
    )
    assert sample("CCO").id == "CCO"


def test_a_mapping_holds_any_subset() -> None:
    found = sample(
        {"id": "m", "structure": ROCK_SALT, "dos": (ENERGY, STATES), "text": "salt", "smiles": "[Na+].[Cl-]",
         "image": PIXELS, "table": {"voltage_kv": 3.0}, "arrays": {"descriptors": [1.0, 2.0, 3.0]}}
    )  # fmt: skip
    assert found.modalities == set(SPECS) and found.id == "m"
    assert sample({"text": "salt", "dos": None}).modalities == {"text"}


def test_a_modality_can_be_given_as_the_model_reads_it() -> None:
    found = sample({"descriptors": [1, 2, 3], "dos": {"intensity": np.ones(41)}, "text": "x"})
    assert found.modalities == {"descriptors", "dos", "text"}
    assert found.arrays["descriptors"]["values"].dtype == np.float32
    for wrong, message in (([1, 2], "length"), ([1, 2, np.nan], "NaN"), (["a", "b", "c"], "no array of numbers")):
        with pytest.raises(DataError, match=message):
            sample({"descriptors": wrong})


def test_only_the_wanted_steps_run() -> None:
    bad = {"structure": ROCK_SALT, "dos": (ENERGY, -STATES)}
    assert sample(bad, "crystal").modalities == {"crystal"}
    with pytest.raises(DataError, match="negative"):
        sample(bad)


@pytest.mark.parametrize(
    ("material", "message"),
    [
        ("some.cif", "no such file"),
        (Path("nowhere"), "no such file"),
        ("GaN is a wurtzite", r"no file here(.|\n)*SMILES(.|\n)*\"text\""),
        ("", "no file here"),
        ("data_x\nnonsense\n", "0 structures"),
        (42, "no material: int"),
        (None, "no material: NoneType"),
        (np.zeros(5), r"no material: ndarray \[5\]"),
        (np.zeros((4, 4)), "no material"),
        ({}, "nothing is given"),
        ({"id": "m"}, r"nothing is given(.|\n)*where: m"),
        (Path(__file__).parent, "this is a folder"),
        ({"structure": ROCK_SALT, "dose": 1.0}, r"'dose' is nothing(.|\n)*'dos'"),
        ({"smiles": "CCO", "voltage_kv": 3.0}, '"table"'),
        ({"smiles": 3}, "no text"),
        ({"smiles": "C1CC"}, "no molecule"),
        ({"image": np.zeros((4, 4))}, "a picture is float64"),
        ({"dos": np.zeros((3, 5))}, "pair of columns"),
        ({"x": object()}, "no cell of a table"),
        (Atoms("NaCl", positions=[[0, 0, 0], [2, 0, 0]]), "not periodic"),
        (Molecule(["H", "H"], [[0, 0, 0], [0, 0, 1]]), "SMILES"),
        ({"lattice": {"matrix": 3}, "sites": []}, "no structure"),
    ],
)
def test_nonsense_is_refused_with_what_was_tried(material: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample(material)


def test_a_name_that_is_a_file_and_a_smiles_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ROCK_SALT.to("CCO", fmt="cif")
    with pytest.raises(DataError, match=r"a file here, and a SMILES too(.|\n)*Path"):
        sample("CCO")
    assert sample(Path("CCO")).modalities == {"crystal"}
    assert sample({"smiles": "CCO"}).modalities == {"smiles"}


def test_one_is_told_from_several() -> None:
    assert several(ROCK_SALT) is None and several("CCO") is None and several({"text": "x"}) is None
    assert several((ENERGY, STATES)) is None and several(pd.Series({"voltage_kv": 1.0})) is None
    assert several([ROCK_SALT]) == [ROCK_SALT] and several(("CCO", "CC")) == ["CCO", "CC"]
    assert several(iter(["CCO"])) == ["CCO"] and several([]) == []
    assert [row["voltage_kv"] for row in several(pd.DataFrame({"voltage_kv": [1.0, 2.0]})) or []] == [1.0, 2.0]
