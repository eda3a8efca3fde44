"""Molecular steps: one result for every spelling, and numbers that RDKit or a textbook gives by another way."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from shards.errors import ConfigError, DataError
from shards.features import feature
from shards.features.smiles import VOCABULARY, tokenize
from shards.molecules import MAX_CHARACTERS, canonical_smiles, molecule_arrays, molecule_tags, parse_smiles
from shards.sources.base import Record
from shards.vocabulary import ELEMENTS, FIRST, UNKNOWN

STEPS = ("molecule", "fingerprint", "smiles", "conformer")
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
MOLECULES = [
    ASPIRIN,
    "C",
    "[Na+].CC(=O)[O-]",
    "N[C@@H](C)C(=O)O",
    "F/C=C\\F",
    "O1CC[C@@H](NC(=O)[C@@H](Cc2cc3cc(ccc3nc2N)-c2ccccc2C)C)CC1(C)C",
    "[2H]OC([13CH3])C#N",
    "c1cc[se]c1",
    "CS(=O)(=O)Nc1nnc(s1)[N+](=O)[O-]",
]


def run(step: str, smiles: str, **options: object):
    made = feature({"step": step, **options})
    value = made(Record(id="m", smiles=smiles))
    if value is not None:
        made.spec("m").check(value)
    return value


def table(folder: Path, name: str, column: str = "smiles") -> list[str]:
    with (folder / "molecules" / name).open() as file:
        return [row[column] for row in csv.DictReader(file)]


def spellings(smiles: str, count: int, seed: int) -> list[str]:
    return list(Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(smiles), count, randomSeed=seed))


@pytest.mark.parametrize("step", STEPS)
def test_spelling_does_not_matter(step: str) -> None:
    options = {"largest_fragment": True} if step == "conformer" else {}
    # MMFF94 has no selenium
    for seed, smiles in enumerate(s for s in MOLECULES if step != "conformer" or "[se]" not in s):
        value = run(step, smiles, **options)
        for other in spellings(smiles, 4, seed):
            again = run(step, other, **options)
            assert all(np.array_equal(value[name], again[name]) for name in value), other


@pytest.mark.parametrize("step", STEPS)
def test_a_record_without_smiles_lacks_the_modality(step: str) -> None:
    assert feature({"step": step})(Record(id="crystal")) is None


def test_graph_of_acetate_by_hand() -> None:
    graph = run("molecule", "CC(=O)[O-]")
    by_element = {}
    for number, mass, row in zip(graph["atomic_numbers"], graph["masses_u"], graph["atom_features"], strict=True):
        by_element.setdefault((int(number), round(float(mass))), []).append(row)
    assert {key: len(rows) for key, rows in by_element.items()} == {(6, 12): 2, (8, 16): 2}
    # columns: degree 0-6 + other (8), charge -2..2 + other (6), hydrogens 0-4 + other (6), hybridisation (8), ...
    degree, charge, hydrogens = slice(0, 8), slice(8, 14), slice(14, 20)
    (methyl,) = [row for row in by_element[6, 12] if row[hydrogens].argmax() == 3]
    assert methyl[degree].argmax() == 4 and methyl[charge].argmax() == 2
    (ionic,) = [row for row in by_element[8, 16] if row[charge].argmax() == 1]
    assert ionic[degree].argmax() == 1
    assert graph["atom_features"].sum(axis=1).tolist() == [5] * 4  # five one-hot blocks, no aromatic or ring atom
    assert graph["edge_index"].shape == (2, 6)
    assert graph["bond_features"][:, :5].sum(axis=0).tolist() == [4, 2, 0, 0, 0]  # two single bonds, one double


def test_graph_counts_agree_with_rdkit(shared_data: Path) -> None:
    for smiles in table(shared_data, "bbbp.csv")[::40]:
        graph, mol = molecule_arrays(parse_smiles(smiles)), Chem.MolFromSmiles(smiles)
        assert (
            np.bincount(graph["atomic_numbers"], minlength=120).tolist()
            == np.bincount([atom.GetAtomicNum() for atom in mol.GetAtoms()], minlength=120).tolist()
        )
        neighbour, centre = graph["edge_index"]
        assert len(centre) == 2 * mol.GetNumBonds() and (np.diff(centre) >= 0).all()
        forward = {(i, j): tuple(row) for i, j, row in zip(neighbour, centre, graph["bond_features"], strict=True)}
        assert all(forward[j, i] == row for (i, j), row in forward.items())
        in_rings = sum(bond.IsInRing() for bond in mol.GetBonds())
        assert graph["bond_features"][:, -1].sum() == 2 * in_rings
        assert graph["atom_features"][:, -2].sum() == sum(atom.GetIsAromatic() for atom in mol.GetAtoms())


@pytest.mark.parametrize(
    ("one", "other"), [("N[C@@H](C)C(=O)O", "N[C@H](C)C(=O)O"), ("F/C=C\\F", "F/C=C/F"), ("CC", "C[13CH3]")]
)
def test_stereo_isomers_and_isotopes_differ(one: str, other: str) -> None:
    a, b = run("molecule", one), run("molecule", other)
    assert any(not np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("radius", "bits"), [(2, 2048), (3, 512)])
def test_fingerprint_is_rdkits_own(radius: int, bits: int) -> None:
    for smiles in MOLECULES:
        value = run("fingerprint", smiles, radius=radius, bits=bits)["values"]
        other = rdMolDescriptors.GetMorganFingerprintAsBitVect(Chem.MolFromSmiles(smiles), radius, nBits=bits)
        assert np.flatnonzero(value).tolist() == list(other.GetOnBits())
        counts = run("fingerprint", smiles, radius=radius, bits=bits, counts=True)["values"]
        hashed = rdMolDescriptors.GetHashedMorganFingerprint(Chem.MolFromSmiles(smiles), radius, nBits=bits)
        assert {int(i): int(counts[i]) for i in np.flatnonzero(counts)} == hashed.GetNonzeroElements()


def test_tokens_join_to_the_smiles_and_name_grammar_parts() -> None:
    names = {number: token for token, number in VOCABULARY.items()}
    for smiles in MOLECULES:
        ids = run("smiles", smiles)["tokens"]
        assert "".join(names[int(number)] for number in ids) == canonical_smiles(smiles)
        assert "".join(names[int(number)] for number in run("smiles", smiles, canonical=False)["tokens"]) == smiles
    assert tokenize("ClCc1[nH]cc1[13C@@H](Br)[Sc+3]%12Sc") == [
        "Cl", "C", "c", "1", "[", "n", "H", "]", "c", "c", "1", "[", "1", "3", "C", "@@", "H", "]", "(", "Br", ")",
        "[", "Sc", "+", "3", "]", "%", "1", "2", "S", "c",
    ]  # fmt: skip


def test_outside_of_brackets_tokens_are_those_of_the_published_pattern() -> None:
    published = re.compile(r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>|\*|\$|%|\d")
    for smiles in MOLECULES:
        whole = [part for token in published.findall(smiles) for part in (tokenize(token) if "[" in token else [token])]
        assert whole == tokenize(smiles)


def test_the_vocabulary_is_closed() -> None:
    assert sorted(VOCABULARY.values()) == list(range(FIRST, FIRST + len(VOCABULARY)))
    assert [Chem.GetPeriodicTable().GetElementSymbol(z) for z in range(1, 119)] == ELEMENTS
    for symbol in ELEMENTS:
        assert UNKNOWN not in run("smiles", f"[{symbol}]")["tokens"]
    assert "[" in VOCABULARY and "?" not in VOCABULARY


def test_a_manifest_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocabulary"):
        feature({"step": "smiles", "vocabulary": 99})


@pytest.mark.parametrize("optimise", ["mmff", "uff"])
def test_conformers_of_benzene_and_ethane(optimise: str) -> None:
    for smiles, carbon_carbon_a, carbon_hydrogen_a in (("c1ccccc1", 1.39, 1.08), ("CC", 1.53, 1.09)):
        value = run("conformer", smiles, optimise=optimise)
        numbers, (neighbour, centre) = value["atomic_numbers"], value["edge_index"]
        length = np.linalg.norm(value["edge_vector"], axis=1)
        np.testing.assert_allclose(
            value["edge_vector"], value["positions"][neighbour] - value["positions"][centre], atol=1e-5
        )
        bonds = length[(numbers[neighbour] == 6) & (numbers[centre] == 6) & (length < 1.7)]
        assert np.abs(bonds - carbon_carbon_a).max() < 0.05
        hydrogens = length[(numbers[neighbour] == 6) & (numbers[centre] == 1) & (length < 1.3)]
        assert len(hydrogens) == 6 and np.abs(hydrogens - carbon_hydrogen_a).max() < 0.05
    flat = run("conformer", "c1ccccc1")["positions"]
    assert np.linalg.svd(flat, compute_uv=False)[2] < 0.05


def test_conformer_keeps_the_configuration() -> None:
    for smiles in ("N[C@@H](C)C(=O)O", "N[C@H](C)C(=O)O"):
        value = run("conformer", smiles)
        mol = Chem.AddHs(parse_smiles(smiles))
        conformer = Chem.Conformer(mol.GetNumAtoms())
        for i, position in enumerate(value["positions"].astype(float)):
            conformer.SetAtomPosition(i, position.tolist())
        mol.AddConformer(conformer)
        Chem.AssignStereochemistryFrom3D(mol)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == canonical_smiles(smiles)


def test_conformer_options() -> None:
    every, near = run("conformer", ASPIRIN, cutoff_a=20.0), run("conformer", ASPIRIN, cutoff_a=1.7)
    atoms = len(every["atomic_numbers"])
    assert atoms == 21 and every["edge_index"].shape[1] == atoms * (atoms - 1)
    assert near["edge_index"].shape[1] == 2 * Chem.AddHs(Chem.MolFromSmiles(ASPIRIN)).GetNumBonds()
    assert (run("conformer", ASPIRIN, hydrogens=False)["atomic_numbers"] != 1).all()
    assert not np.array_equal(every["positions"], run("conformer", ASPIRIN, seed=5)["positions"])


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [("[Na+].CC(=O)[O-]", "fragments"), ("*CC", "place holder"), ("c1cc[se]c1", "mmff lacks")],
)
def test_without_a_conformer_the_record_is_refused_or_the_modality_absent(smiles: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        run("conformer", smiles)
    assert run("conformer", smiles, failure="absent") is None


def test_largest_fragment() -> None:
    assert canonical_smiles(f"[Na+].O.{ASPIRIN}", largest_fragment=True) == canonical_smiles(ASPIRIN)
    assert len(run("molecule", f"O.{ASPIRIN}")["atomic_numbers"]) == 14
    assert len(run("molecule", f"O.{ASPIRIN}", largest_fragment=True)["atomic_numbers"]) == 13
    assert canonical_smiles("CF.CO", largest_fragment=True) == "CF"  # as many atoms, the heavier one


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("CC(C)(C)(C)C", "valence for atom # 1 C, 5"),
        ("c1cccc1", "kekulize"),
        ("CC(", "syntax error"),
        ("C1CC", "unclosed ring"),
        ("CCO ethanol", "white space"),
        ("  ", "0 characters"),
        ("C" * (MAX_CHARACTERS + 1), "characters"),
    ],
)
def test_a_refusal_gives_the_reason_and_prints_nothing(smiles: str, reason: str, capfd: pytest.CaptureFixture) -> None:
    for step in STEPS:
        with pytest.raises(DataError, match=re.escape(reason)):
            run(step, smiles)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("step", "option"), [("molecule", "max_atoms"), ("conformer", "max_atoms"), ("smiles", "max_tokens")]
)
def test_a_molecule_above_the_limit_is_refused(step: str, option: str) -> None:
    with pytest.raises(DataError, match=f"{option}"):
        run(step, ASPIRIN, **{option: 12})


def test_tags() -> None:
    assert molecule_tags("OC(=O)c1ccccc1OC(C)=O") == {
        "smiles": ASPIRIN,
        "formula": "C9H8O4",
        "chemical_system": "C-H-O",
        "scaffold": "c1ccccc1",
    }
    assert molecule_tags("CCO")["scaffold"] == "acyclic"
    assert molecule_tags("C[C@@H]1CC[C@H](O)CC1")["scaffold"] == "C1CCCCC1"


@pytest.mark.parametrize("step", STEPS)
def test_without_rdkit_the_extra_is_named(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse_smiles.cache_clear()
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ConfigError, match=r"matloom\[molecules\]"):
        run(step, "CC")


def test_specs_need_no_rdkit() -> None:
    code = (
        "import sys; from shards.features import feature\n"
        f"for step in {STEPS!r}: feature({{'step': step}}).spec('m')\n"
        "assert 'rdkit' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_all_real_molecules_go_through_every_step_but_the_conformer(shared_data: Path) -> None:
    count = 0
    for name in ("delaney-processed.csv", "freesolv.csv", "lipo.csv", "bace.csv", "bbbp.csv"):
        for smiles in table(shared_data, name):
            count += 1
            graph = run("molecule", smiles)
            (other,) = spellings(smiles, 1, count)
            again = run("molecule", other)
            assert all(np.array_equal(graph[field], again[field]) for field in graph), smiles
            assert UNKNOWN not in run("smiles", smiles)["tokens"]
            assert run("fingerprint", smiles)["values"].any()
    assert count == 9522
