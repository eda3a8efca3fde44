"""Crystal structures as periodic graphs: primitive cell, neighbours, arrays to store.

Every neighbour inside the cut-off is an edge, periodic images included; nothing is truncated by
count, because a cut by count splits shells of equal distance and so depends on the order of atoms.
Where an atom has no neighbour inside the cut-off, it gets its nearest shell. That edge may have no
reverse edge (the neighbour may have nearer ones of its own); every atom receives a message, which
is what a graph network needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shards.errors import DataError

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_ATOMIC_NUMBER = 118
MIN_DISTANCE_A = 0.1
MIN_VOLUME_PER_ATOM_A3 = 0.5
# A shell that lies exactly on the cut-off stays whole in spite of rounding.
SHELL_TOLERANCE_A = 1e-5
# Neighbours within this distance of the nearest one form the nearest shell.
NEAREST_SHELL_A = 0.01
# Above so many periodic images (a very skewed cell) the search runs in a reduced basis.
MAX_IMAGES = 20_000
# Up to so many atoms of the rarest element the reducibility of a cell is tested before spglib runs.
MAX_SHIFT_ATOMS = 40


class Neighbours(NamedTuple):
    """Edges of a periodic structure, grouped by centre.

    Attributes
    ----------
    centre, neighbour : ndarray
        (E,) int64 atom indices; ``centre`` ascends.
    vector : ndarray
        (E, 3) float64, Angstrom: position of the neighbour's image minus that of the centre.
    distance : ndarray
        (E,) float64, Angstrom.
    """

    centre: np.ndarray
    neighbour: np.ndarray
    vector: np.ndarray
    distance: np.ndarray


def neighbours(
    lattice: np.ndarray, positions: np.ndarray, cutoff_a: float, centres: np.ndarray | None = None
) -> Neighbours:
    """Find all neighbours, in all periodic images, within ``cutoff_a``.

    Parameters
    ----------
    lattice : ndarray
        (3, 3) rows are the lattice vectors, Angstrom.
    positions : ndarray
        (n, 3) Cartesian coordinates, Angstrom; they may lie outside the cell.
    cutoff_a : float
        Radius in Angstrom, inclusive.
    centres : ndarray, optional
        (c,) indices of the atoms whose neighbours are wanted; all by default.

    Returns
    -------
    Neighbours
        Without the atom itself, with its own periodic images.
    """
    from pymatgen.optimization.neighbors import find_points_in_spheres

    lattice = np.ascontiguousarray(lattice, dtype=np.float64)
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    indices = np.arange(len(positions)) if centres is None else np.asarray(centres, dtype=np.int64)
    radius = cutoff_a + SHELL_TOLERANCE_A
    basis = _search_basis(lattice, radius)
    found = find_points_in_spheres(
        positions, positions[indices], r=radius, pbc=np.ones(3, dtype=np.int64), lattice=basis, tol=1e-8
    )
    centre, neighbour, offset, distance = found
    centre = indices[centre]
    keep = (centre != neighbour) | (offset != 0).any(axis=1)
    order = np.flatnonzero(keep)
    order = order[np.argsort(centre[order], kind="stable")]
    centre, neighbour = centre[order], neighbour[order]
    vector = positions[neighbour] + offset[order] @ basis - positions[centre]
    return Neighbours(centre, neighbour, vector, distance[order])


def _search_basis(lattice: np.ndarray, radius: float) -> np.ndarray:
    """Return ``lattice``, or a reduced basis of it where a search would visit very many images."""
    planes = np.linalg.norm(np.linalg.inv(lattice), axis=0)  # 1 / distance between lattice planes
    if np.prod(2.0 * np.ceil(radius * planes) + 1.0) <= MAX_IMAGES:
        return lattice
    from pymatgen.core import Lattice

    return np.ascontiguousarray(Lattice(lattice).get_lll_reduced_lattice().matrix)


def connected_neighbours(lattice: np.ndarray, positions: np.ndarray, cutoff_a: float) -> Neighbours:
    """Find `neighbours`; an atom that has none inside ``cutoff_a`` gets its nearest shell.

    The nearest shell is everything within 0.01 A of the nearest neighbour. It always exists: an
    atom's own image is at most a lattice vector away.
    """
    found = neighbours(lattice, positions, cutoff_a)
    lonely = np.flatnonzero(np.bincount(found.centre, minlength=len(positions)) == 0)
    if not len(lonely):
        return found
    parts = [found, *(_nearest_shell(lattice, positions, int(atom), cutoff_a) for atom in lonely)]
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    return Neighbours(*(array[order] for array in joined))


def _nearest_shell(lattice: np.ndarray, positions: np.ndarray, atom: int, radius: float) -> Neighbours:
    """Find the nearest shell of one atom that has no neighbour within ``radius``."""
    centre = np.array([atom])
    found = neighbours(lattice, positions, radius, centre)
    while not len(found.centre):
        radius *= 1.5
        found = neighbours(lattice, positions, radius, centre)
    return neighbours(lattice, positions, float(found.distance.min()) + NEAREST_SHELL_A, centre)


def check_structure(structure: Structure, *, where: object = None) -> None:
    """Raise `DataError` for a structure that no periodic graph can be made of.

    Refused are empty, disordered and partially occupied structures, species that are no element up
    to Z = 118, coordinates that are not finite, and cells without volume. Overlapping atoms are
    found by `crystal_arrays`, where the distances are known.
    """
    _checked_numbers(structure, where)


def _checked_numbers(structure: Structure, where: object) -> np.ndarray:
    """Do what `check_structure` does, and return the atomic numbers: (n,) int64."""
    if len(structure) == 0:
        raise DataError("the structure has no atoms", where=where, do="leave the record out")
    numbers = _atomic_numbers(structure, where)
    lattice = structure.lattice.matrix
    if not (np.isfinite(lattice).all() and np.isfinite(structure.frac_coords).all()):
        raise DataError("the lattice or the coordinates hold NaN or infinity", where=where, do="leave the record out")
    volume = abs(float(np.linalg.det(lattice)))
    if volume < MIN_VOLUME_PER_ATOM_A3 * len(structure):
        raise DataError(
            f"the cell has {volume:.3g} cubic Angstrom for {len(structure)} atoms",
            where=where,
            why="lattice vectors in one plane, or lengths that are not in Angstrom",
            do="check the lattice vectors and their unit",
        )
    return numbers


def _atomic_numbers(structure: Structure, where: object) -> np.ndarray:
    """Return the atomic numbers of a structure with one element on every site: (n,) int64."""
    from pymatgen.core import DummySpecies

    # one pass: pymatgen's own properties (is_ordered, species, atomic_numbers) each walk over all sites
    occupied = [site.species for site in structure]
    if any(len(species) != 1 or species.num_atoms != 1 for species in occupied):
        raise DataError(
            "the structure has sites that are partially occupied or shared by several elements",
            where=where,
            why="a graph needs one element on every site",
            do="choose an ordered approximant, for example with pymatgen's OrderDisorderedStructureTransformation",
        )
    found = [next(iter(species)) for species in occupied]
    strange = sorted({str(s) for s in found if isinstance(s, DummySpecies) or s.Z > MAX_ATOMIC_NUMBER})
    if strange:
        raise DataError(
            f"species {', '.join(strange)} are no chemical elements with Z from 1 to {MAX_ATOMIC_NUMBER}",
            where=where,
            do="replace them by elements or leave the record out",
        )
    return np.array([species.Z for species in found], dtype=np.int64)


def primitive_cell(structure: Structure, *, symprec_a: float = 0.01) -> Structure:
    """Return the primitive cell, so that a supercell makes the same graph as the cell it repeats.

    Lengths, angles and positions are not idealised. A cell that is primitive already is returned as
    it is, so its axes stay those of a charge density given for it; so is one that spglib cannot
    reduce.

    Parameters
    ----------
    structure : Structure
        An ordered structure.
    symprec_a : float
        Distance in Angstrom within which atoms count as equivalent (spglib's ``symprec``).
    """
    return _reduced(structure, np.array(structure.atomic_numbers), symprec_a)


def _reduced(structure: Structure, numbers: np.ndarray, symprec_a: float) -> Structure:
    """Return the primitive cell of a structure whose atomic numbers are known."""
    lattice, frac_coords = structure.lattice.matrix, structure.frac_coords
    if not _may_be_reducible(lattice, frac_coords, numbers, 2.0 * symprec_a):
        return structure
    import spglib
    from pymatgen.core import Element, Structure

    cell: Any = (lattice, frac_coords, numbers)
    try:
        found = spglib.standardize_cell(cell, to_primitive=True, no_idealize=True, symprec=symprec_a)
    except Exception:  # spglib >= 2.7 may raise its own errors where older versions return None
        found = None
    if found is None or len(found[2]) >= len(structure):
        return structure
    basis, sites, kinds = found
    return Structure(basis, [Element.from_Z(int(number)) for number in kinds], sites)


def _may_be_reducible(lattice: np.ndarray, frac_coords: np.ndarray, numbers: np.ndarray, tolerance_a: float) -> bool:
    """Tell whether a shift by less than a lattice vector may map the structure onto itself.

    A necessary condition, many times cheaper than spglib: the number of such shifts divides the number
    of atoms of every element, and each leads from one atom of the rarest element to another one. Twice
    the tolerance of the reduction is enough for shifts that are differences of positions.
    """
    elements, counts = np.unique(numbers, return_counts=True)
    if np.gcd.reduce(counts) == 1:
        return False
    if counts.min() > MAX_SHIFT_ATOMS:
        return True
    by_element = [frac_coords[numbers == element] for element in elements[np.argsort(counts, kind="stable")]]
    rare, others = by_element[0], by_element[1:]
    shifts = rare[1:] - rare[0]
    shifts = shifts[_map_onto_themselves(lattice, rare, shifts, tolerance_a)]
    return any(
        all(_map_onto_themselves(lattice, coords, shift[None], tolerance_a)[0] for coords in others) for shift in shifts
    )


def _map_onto_themselves(
    lattice: np.ndarray, frac_coords: np.ndarray, shifts: np.ndarray, tolerance_a: float
) -> np.ndarray:
    """Tell for each of s shifts (s, 3), fractional, whether it maps points onto points: (s,) bool."""
    gaps = frac_coords[None, :, None] + shifts[:, None, None] - frac_coords[None, None, :]  # (shift, from, to, xyz)
    gaps -= np.round(gaps)
    distance = np.linalg.norm(gaps @ lattice, axis=-1).min(axis=2)
    return np.asarray((distance < tolerance_a).all(axis=1))


def crystal_arrays(
    structure: Structure,
    *,
    cutoff_a: float = 5.0,
    primitive: bool = True,
    potentials: bool = True,
    symprec_a: float = 0.01,
    where: object = None,
) -> dict[str, np.ndarray]:
    """Turn a structure into the arrays of a crystal graph.

    Parameters
    ----------
    structure : Structure
        An ordered pymatgen structure.
    cutoff_a, primitive : float, bool
        Radius in Angstrom within which every neighbour is an edge; reduce to the primitive cell first.
    potentials : bool
        Add the infinite lattice sums of every ordered pair of atoms (`shards.potentials`).
    symprec_a : float
        Tolerance of the primitive reduction, Angstrom.
    where : object, optional
        Named in errors (the record's id).

    Returns
    -------
    dict of str to ndarray
        n atoms, E edges: ``atomic_numbers`` (n,) uint8; ``frac_coords`` (n, 3) float32 in [0, 1);
        ``lattice`` (3, 3) float32, A; ``edge_index`` (2, E) int32, row 0 the neighbour (source),
        row 1 the centre (target, ascending); ``edge_vector`` (E, 3) float32, A, neighbour's image
        minus centre; with ``potentials`` also ``pair_index`` (2, n * n) int32, row 0 the other
        atom, row 1 the centre, and ``potentials`` (n * n, 3) float32.

    Raises
    ------
    DataError
        Where the structure cannot be used; see `check_structure`. Also for atoms nearer to each
        other than 0.1 A.
    """
    numbers = _checked_numbers(structure, where)
    cell = _reduced(structure, numbers, symprec_a) if primitive else structure
    if cell is not structure:
        numbers = np.array(cell.atomic_numbers)
    lattice = np.array(cell.lattice.matrix, dtype=np.float64)
    frac_coords = cell.frac_coords % 1.0
    positions = frac_coords @ lattice
    edges = connected_neighbours(lattice, positions, cutoff_a)
    _check_distances(edges, cell, where)
    arrays = {
        "atomic_numbers": numbers.astype(np.uint8),
        "frac_coords": frac_coords.astype(np.float32) % np.float32(1.0),
        "lattice": lattice.astype(np.float32),
        "edge_index": np.stack([edges.neighbour, edges.centre]).astype(np.int32),
        "edge_vector": edges.vector.astype(np.float32),
    }
    return arrays | _pair_arrays(lattice, positions) if potentials else arrays


def _pair_arrays(lattice: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Return the lattice sums of every ordered pair of atoms, and the atoms of each pair."""
    from shards.potentials import lattice_sums

    atoms = np.arange(len(positions), dtype=np.int32)
    return {
        "pair_index": np.stack([np.tile(atoms, len(atoms)), np.repeat(atoms, len(atoms))]),
        "potentials": lattice_sums(lattice, positions).reshape(-1, 3).astype(np.float32),
    }


def _check_distances(edges: Neighbours, cell: Structure, where: object) -> None:
    """Raise `DataError` where two atoms overlap."""
    nearest = int(edges.distance.argmin())
    if edges.distance[nearest] >= MIN_DISTANCE_A:
        return
    i, j = int(edges.centre[nearest]), int(edges.neighbour[nearest])
    raise DataError(
        f"atoms {i} ({cell[i].specie}) and {j} ({cell[j].specie}) are {edges.distance[nearest]:.3g} A apart",
        where=where,
        why="a site listed twice, or alternative sites of a disordered structure",
        do="remove one of the overlapping sites (pymatgen: structure.merge_sites(0.1, mode='delete'))",
    )
