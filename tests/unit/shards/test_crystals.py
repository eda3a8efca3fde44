"""Periodic graphs: against pymatgen, invariances, and input that must be refused."""

from __future__ import annotations

import numpy as np
import pytest
import spglib
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from shards.crystals import check_structure, connected_neighbours, crystal_arrays, neighbours, primitive_cell
from shards.errors import DataError


def random_structure(seed: int, atoms: int = 6) -> Structure:
    """A low-symmetry cell whose atoms keep 1.2 A apart."""
    rng = np.random.default_rng(seed)
    lattice = Lattice.from_parameters(*rng.uniform(4, 6, 3), *rng.uniform(70, 110, 3))
    while True:
        coords = rng.uniform(-1, 2, (atoms, 3))
        structure = Structure(lattice, rng.choice(["Na", "Cl", "O", "Ti"], atoms), coords)
        if structure.distance_matrix[np.triu_indices(atoms, 1)].min() > 1.2:
            return structure


def rocksalt(a: float = 5.64) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def signature(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Edges as sorted rows (element of centre, element of neighbour, distance): what a graph is up to names."""
    z = arrays["atomic_numbers"].astype(float)
    source, target = arrays["edge_index"]
    rows = np.stack([z[target], z[source], np.linalg.norm(arrays["edge_vector"], axis=1).round(3)], axis=1)
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cutoff", [3.0, 5.0, 8.0])
def test_neighbours_are_pymatgens(seed: int, cutoff: float) -> None:
    structure = random_structure(seed)
    found = neighbours(structure.lattice.matrix, structure.cart_coords, cutoff)
    expected = structure.get_all_neighbors(cutoff)
    assert np.bincount(found.centre, minlength=len(structure)).tolist() == [len(shell) for shell in expected]
    distances = np.sort([n.nn_distance for shell in expected for n in shell])
    np.testing.assert_allclose(np.sort(found.distance), distances, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(found.vector, axis=1), found.distance, atol=1e-8)
    assert (np.diff(found.centre) >= 0).all()


def test_vectors_lead_to_images_of_the_neighbour() -> None:
    structure = random_structure(0)
    found = neighbours(structure.lattice.matrix, structure.cart_coords, 5.0)
    ends = structure.cart_coords[found.centre] + found.vector - structure.cart_coords[found.neighbour]
    offsets = structure.lattice.get_fractional_coords(ends)
    np.testing.assert_allclose(offsets, np.round(offsets), atol=1e-8)


def test_every_edge_inside_the_cutoff_has_its_reverse() -> None:
    arrays = crystal_arrays(random_structure(1))
    forward = np.column_stack([*arrays["edge_index"], arrays["edge_vector"].round(3)])
    backward = np.column_stack([*arrays["edge_index"][::-1], -arrays["edge_vector"].round(3)])
    assert sorted(map(tuple, forward + 0.0)) == sorted(map(tuple, backward + 0.0))


def test_no_neighbour_is_cut_by_count() -> None:
    copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.0), ["Cu"], [[0, 0, 0]])
    arrays = crystal_arrays(copper, cutoff_a=5.0)
    # fcc shells up to 5 A at a = 3: 12 + 6 + 24 + 12 + 24 (4.74) = 78
    assert arrays["edge_index"].shape == (2, 78)


def test_a_shell_on_the_cutoff_stays_whole() -> None:
    rotation = Rotation.random(random_state=0).as_matrix()
    lattice = Lattice(np.eye(3) * 5.0 @ rotation.T)
    assert crystal_arrays(Structure(lattice, ["Po"], [[0.1, 0.2, 0.3]]), cutoff_a=5.0)["edge_index"].shape == (2, 6)


def test_a_lonely_atom_gets_its_nearest_shell() -> None:
    gas = Structure(Lattice.cubic(30.0), ["He"], [[0.2, 0.2, 0.2]])
    arrays = crystal_arrays(gas, cutoff_a=5.0)
    assert arrays["edge_index"].shape == (2, 6)
    np.testing.assert_allclose(np.linalg.norm(arrays["edge_vector"], axis=1), 30.0, rtol=1e-6)


def test_only_lonely_atoms_are_extended() -> None:
    lattice, positions = np.eye(3) * 40.0, np.array([[0.0, 0, 0], [1.0, 0, 0], [20.0, 0, 0]])
    found = connected_neighbours(lattice, positions, 5.0)
    assert found.centre.tolist() == [0, 1, 2]
    assert found.neighbour.tolist() == [1, 0, 1]
    np.testing.assert_allclose(found.distance, [1.0, 1.0, 19.0])


def test_graph_is_invariant_under_translation_rotation_and_atom_order() -> None:
    structure = random_structure(3)
    reference = crystal_arrays(structure)
    moved = structure.copy()
    moved.translate_sites(range(len(moved)), [0.37, 1.21, -0.4], to_unit_cell=False)
    rotation = Rotation.random(random_state=1).as_matrix()
    turned = Structure(structure.lattice.matrix @ rotation.T, structure.species, structure.frac_coords)
    shuffled = Structure.from_sites([structure[i] for i in np.random.default_rng(0).permutation(len(structure))])
    for other in (moved, turned, shuffled):
        arrays = crystal_arrays(other)
        np.testing.assert_allclose(signature(arrays), signature(reference), atol=2.1e-3)
        np.testing.assert_allclose(
            np.sort(arrays["potentials"], axis=0), np.sort(reference["potentials"], axis=0), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("scaling", [(2, 1, 1), (2, 2, 2), ((1, 1, 0), (0, 1, 0), (0, 0, 3))])
@pytest.mark.parametrize("make", [rocksalt, lambda: random_structure(4)])
def test_a_supercell_makes_the_graph_of_its_primitive_cell(scaling, make) -> None:
    structure = make()
    reference, arrays = crystal_arrays(structure), crystal_arrays(structure.make_supercell(scaling, in_place=False))
    assert len(arrays["atomic_numbers"]) == len(reference["atomic_numbers"])
    np.testing.assert_allclose(signature(arrays), signature(reference), atol=2.1e-3)
    np.testing.assert_allclose(
        np.sort(arrays["potentials"], axis=0), np.sort(reference["potentials"], axis=0), rtol=1e-4, atol=1e-6
    )


def test_reduction_does_not_idealise() -> None:
    strained = rocksalt()
    strained.apply_strain([0.0, 0.0, 0.0005])
    reduced = primitive_cell(strained, symprec_a=0.01)
    assert len(reduced) == 2
    assert reduced.volume == pytest.approx(strained.volume / 4, rel=1e-9)
    lengths = np.unique(np.round(neighbours(reduced.lattice.matrix, reduced.cart_coords, 3.0).distance, 5))
    np.testing.assert_allclose(lengths, [2.82, 2.82 * 1.0005], atol=2e-5)


def test_a_primitive_cell_keeps_its_axes() -> None:
    structure = random_structure(5)
    assert primitive_cell(structure) is structure


@pytest.mark.parametrize("noise_a", [0.0, 0.002, 0.005, 0.008, 0.02])
def test_the_quick_test_never_overrules_spglib(noise_a: float) -> None:
    for seed in range(12):
        structure = random_structure(seed, atoms=2 + seed % 4) if seed % 3 else rocksalt()
        structure = structure.make_supercell([(2, 1, 1), (1, 1, 3), (2, 2, 1)][seed % 3], in_place=False)
        structure.perturb(noise_a)
        cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
        found = spglib.standardize_cell(cell, to_primitive=True, no_idealize=True, symprec=0.01)
        assert len(primitive_cell(structure, symprec_a=0.01)) == len(found[2])


def test_spglib_runs_only_where_the_whole_cell_may_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(spglib, "standardize_cell", lambda *_, **__: called.append(1))
    # the titanium atoms alone repeat after half of the cell, the oxygen atoms do not
    halves = Structure(
        Lattice.orthorhombic(8, 4, 4.5), ["Ti", "Ti", "O", "O"], [[0, 0, 0], [0.5, 0, 0], [0.2, 0.5, 0], [0.3, 0, 0.5]]
    )
    assert primitive_cell(halves) is halves and not called
    primitive_cell(halves.make_supercell((1, 2, 1), in_place=False))
    assert called


def test_a_body_centred_cell_of_a_compound_is_reduced() -> None:
    lattice = Lattice.tetragonal(3.94, 11.71)
    sites = {"Ti": [0, 0, 0], "O": [0.5, 0, 0.1]}
    both = [([*site], name) for name, site in sites.items()]
    both += [([x + 0.5 for x in site], name) for name, site in sites.items()]
    structure = Structure(lattice, [name for _, name in both], [site for site, _ in both])
    assert len(primitive_cell(structure)) == 2


def test_a_very_skewed_cell_gives_the_same_graph() -> None:
    structure = random_structure(2)
    skewed = Structure(
        np.array([[1, 0, 0], [300, 1, 0], [-170, 40, 1]]) @ structure.lattice.matrix,
        structure.species,
        structure.cart_coords,
        coords_are_cartesian=True,
    )
    assert signature(crystal_arrays(skewed, potentials=False)).shape == signature(crystal_arrays(structure)).shape
    np.testing.assert_allclose(signature(crystal_arrays(skewed)), signature(crystal_arrays(structure)), atol=2.1e-3)


def test_arrays_have_the_stored_types() -> None:
    arrays = crystal_arrays(rocksalt())
    assert {name: (str(a.dtype), a.ndim) for name, a in arrays.items()} == {
        "atomic_numbers": ("uint8", 1),
        "frac_coords": ("float32", 2),
        "lattice": ("float32", 2),
        "edge_index": ("int32", 2),
        "edge_vector": ("float32", 2),
        "pair_index": ("int32", 2),
        "potentials": ("float32", 2),
    }
    assert arrays["pair_index"].T.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert "potentials" not in crystal_arrays(rocksalt(), potentials=False)
    coords = crystal_arrays(Structure(Lattice.cubic(4), ["Po"], [[-1e-12, 1.0, 0.5]]))["frac_coords"]
    assert (coords >= 0).all() and (coords < 1).all()


CUBE = Lattice.cubic(4.0)
HOSTILE = {
    "no atoms": (lambda: Structure(CUBE, [], []), "no atoms"),
    "shared site": (lambda: Structure(CUBE, [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]), "partially occupied"),
    "vacancies": (lambda: Structure(CUBE, [{"Na": 0.9}], [[0, 0, 0]]), "partially occupied"),
    "dummy": (lambda: Structure(CUBE, ["X"], [[0, 0, 0]]), "no chemical elements"),
    "nan": (lambda: Structure(CUBE, ["Na"], [[np.nan, 0, 0]]), "NaN"),
    "flat": (lambda: Structure([[4, 0, 0], [0, 4, 0], [4, 4, 0]], ["Na"], [[0, 0, 0]]), "cubic Angstrom"),
    "dense": (lambda: Structure(Lattice.cubic(0.4), ["Na"], [[0, 0, 0]]), "cubic Angstrom"),
    "overlap": (lambda: Structure(CUBE, ["Na", "K"], [[0, 0, 0], [0.01, 0, 1]]), "0.04 A apart"),
    "same place": (lambda: Structure(CUBE, ["Na", "Na"], [[0, 0, 0], [1, 0, 0]]), "0 A apart"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_structures_are_refused(name: str) -> None:
    make, message = HOSTILE[name]
    with pytest.raises(DataError, match=message) as caught:
        crystal_arrays(make(), where="record 7")
    assert caught.value.where == "record 7"
    assert caught.value.do


def test_isotopes_and_charges_are_elements() -> None:
    check_structure(Structure(CUBE, ["D", "Fe3+"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    arrays = crystal_arrays(Structure(CUBE, ["D", "Fe3+"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    assert arrays["atomic_numbers"].tolist() == [1, 26]
