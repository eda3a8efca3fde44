"""Which crystals are alike: prototypes for splits, duplicates for leakage reports.

Two crystals are duplicates where pymatgen's StructureMatcher maps one onto the other up to scale, with
tolerances tighter than its defaults. It compares candidates alone: crystals of one reduced formula
whose distances, in units of the cube root of the volume per atom, are distributed alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.crystals import check_structure, neighbours
from shards.errors import DataError
from shards.schema import Arrays, ModalitySpec

if TYPE_CHECKING:
    from pymatgen.core import Structure

# relative to the lattice vectors, and to the cube root of the volume per atom
LENGTH_TOLERANCE, SITE_TOLERANCE, ANGLE_TOLERANCE_DEG = 0.1, 0.1, 3.0
# scaled distances at which the distribution is sampled, and the width of its smearing
RADII = np.arange(0.6, 2.25, 0.1)
WIDTH = 0.15
# candidates differ by less than this share of their distributions: displacements within SITE_TOLERANCE make 0.09
MAX_DIFFERENCE = 0.15
SYMPREC_A = (0.1, 0.01, 1e-3, 1e-5)
FIELDS = ("atomic_numbers", "frac_coords", "lattice")


def crystal_modalities(modalities: Mapping[str, ModalitySpec]) -> list[str]:
    """Return the names of the modalities whose arrays hold a crystal."""
    return [name for name, spec in modalities.items() if set(FIELDS) <= set(spec.fields)]


def prototype_label(structure: Structure) -> str:
    """Return the prototype of a crystal: anonymous formula, space group and occupied Wyckoff positions.

    Elements are ordered by their amount and the letters of their positions, and of the choices of origin
    that a space group allows the first in alphabetical order counts. So rock salt is ``AB_225_a_b``
    whichever of its elements is called first (Goodall et al., Sci. Adv. 8, eabn4117 (2022), whose label
    names the order of the elements as well). Symmetry is found by spglib within 0.1 A.

    Raises
    ------
    DataError
        For a structure that no periodic graph can be made of, or without a symmetry that spglib finds.
    """
    check_structure(structure, where=structure.formula)
    symmetry = _symmetry(structure)
    elements: dict[int, list[str]] = {}
    for first in sorted(set(symmetry.crystallographic_orbits.tolist())):
        elements.setdefault(structure.atomic_numbers[first], []).append(symmetry.wyckoffs[first])
    amounts = Counter(structure.atomic_numbers)
    least = min(
        sorted((amounts[number], _letters(letters, relabelled)) for number, letters in elements.items())
        for relabelled in _relabellings(int(symmetry.number))
    )
    return "_".join(
        [structure.composition.anonymized_formula, str(symmetry.number), *(letters for _, letters in least)]
    )


def duplicates(crystals: Iterable[tuple[str, Arrays]]) -> list[list[str]]:
    """Find the crystals that are the same up to rotation, translation, order of atoms, cell, scale and noise.

    Parameters
    ----------
    crystals : iterable of (str, arrays)
        Id, and ``atomic_numbers`` (n,), ``frac_coords`` (n, 3), ``lattice`` (3, 3) in Angstrom.

    Returns
    -------
    list of list of str
        Ids of the crystals that are equal to each other, at least two a list.
    """
    buckets: dict[tuple[int, ...], list[tuple[str, Arrays]]] = {}
    for sample_id, arrays in crystals:
        kept = {name: arrays[name] for name in FIELDS}
        buckets.setdefault(_reduced_formula(arrays["atomic_numbers"]), []).append((sample_id, kept))
    return [found for bucket in buckets.values() if len(bucket) > 1 for found in _equal(bucket)]


def distance_distribution(arrays: Arrays) -> np.ndarray:
    """Return how many neighbours an atom has at each of `RADII`: all, and those of its own element.

    Distances are in units of the cube root of the volume per atom; a neighbour counts as a Gaussian of
    width `WIDTH`, so noise changes the result by little and a choice of the cell not at all.

    Returns
    -------
    ndarray
        (2, len(RADII)) float64.
    """
    numbers, lattice = arrays["atomic_numbers"], np.asarray(arrays["lattice"], dtype=np.float64)
    lattice = lattice / (abs(np.linalg.det(lattice)) / len(numbers)) ** (1 / 3)
    edges = neighbours(lattice, arrays["frac_coords"] @ lattice, float(RADII[-1]) + 3 * WIDTH)
    peaks = np.exp(-(((edges.distance[:, None] - RADII) / WIDTH) ** 2) / 2)
    own = numbers[edges.centre] == numbers[edges.neighbour]
    return np.stack([peaks.sum(axis=0), peaks[own].sum(axis=0)]) / len(numbers)


def structure_of(arrays: Arrays) -> Structure:
    """Return the crystal of ``atomic_numbers``, ``frac_coords`` and ``lattice`` as a pymatgen structure."""
    from pymatgen.core import Element, Structure

    species = [Element.from_Z(int(number)) for number in arrays["atomic_numbers"]]
    return Structure(arrays["lattice"], species, arrays["frac_coords"])


def _equal(bucket: list[tuple[str, Arrays]]) -> Iterator[list[str]]:
    """Yield the ids of equal crystals among those of one formula."""
    matcher = _matcher()
    firsts: list[Arrays] = []
    distributions: list[np.ndarray] = []
    groups: list[list[str]] = []
    for sample_id, arrays in bucket:
        distribution = distance_distribution(arrays)
        known = np.array(distributions)
        gaps = np.abs(known - distribution).sum(axis=(1, 2)) / distribution.sum() if groups else np.zeros(0)
        structure = None
        for candidate in np.argsort(gaps, kind="stable"):
            if gaps[candidate] > MAX_DIFFERENCE:
                continue
            structure = structure_of(arrays) if structure is None else structure
            if matcher.fit(structure_of(firsts[candidate]), structure):
                groups[candidate].append(sample_id)
                break
        else:
            firsts.append(arrays)
            distributions.append(distribution)
            groups.append([sample_id])
    yield from (group for group in groups if len(group) > 1)


def _reduced_formula(numbers: np.ndarray) -> tuple[int, ...]:
    elements, counts = np.unique(numbers, return_counts=True)
    return (*elements.tolist(), *(counts // math.gcd(*counts.tolist())).tolist())


def _matcher() -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=LENGTH_TOLERANCE, stol=SITE_TOLERANCE, angle_tol=ANGLE_TOLERANCE_DEG)


def _symmetry(structure: Structure) -> Any:
    """Return spglib's data set with the widest tolerance that it can work with."""
    import spglib

    cell: Any = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    for symprec_a in SYMPREC_A:
        try:
            found = spglib.get_symmetry_dataset(cell, symprec=symprec_a)
        except spglib.SpglibError:
            continue
        if found is not None:
            return found
    raise DataError("spglib finds no symmetry of the structure", where=structure.formula, why="overlapping atoms")


@lru_cache(maxsize=230)
def _relabellings(space_group: int) -> list[dict[int, str]]:
    """Return what the letters of a space group's Wyckoff positions become under its choices of origin."""
    from pymatgen.analysis.prototypes import WYCKOFF_POSITION_RELAB_DICT

    return [str.maketrans(table) for table in WYCKOFF_POSITION_RELAB_DICT[str(space_group)]]


def _letters(letters: list[str], relabelled: dict[int, str]) -> str:
    """Return relabelled letters in alphabetical order, with their number where it is not 1: ``a2c``."""
    counts = Counter(letter.translate(relabelled) for letter in letters)
    return "".join(f"{count if count > 1 else ''}{letter}" for letter, count in sorted(counts.items()))
