"""Microseconds of CPU a structure for neighbour lists and crystal graphs, beside pymatgen and ASE, in turn in one run.

OMP_NUM_THREADS=1 python benchmarks/graphs.py [FILE.xyz ...]

Structures are those of the embedded data set and of any files named (extended XYZ, or whatever else the
``structures`` source reads). Before anything is timed, the edges of a sample are compared with ASE's.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from pymatgen.core import Structure

from shards.crystals import SHELL_TOLERANCE_A, connected_neighbours, crystal_arrays, neighbours
from shards.sources import source
from shards.sources.embedded import embedded_records

CUTOFF_A = 5.0
ROUNDS = 5
SAMPLE = 60


def ase_edges(structure: Structure) -> tuple[np.ndarray, ...]:
    """Centre, neighbour and vector of every edge by ASE."""
    cell, positions = structure.lattice.matrix, structure.cart_coords
    atoms = Atoms(numbers=structure.atomic_numbers, cell=cell, positions=positions, pbc=True)
    return neighbor_list("ijD", atoms, CUTOFF_A + SHELL_TOLERANCE_A)


WAYS: dict[str, Callable[[Structure], object]] = {
    "neighbour list": lambda s: connected_neighbours(s.lattice.matrix, s.cart_coords, CUTOFF_A),
    "crystal_arrays, potentials=False": lambda s: crystal_arrays(s, cutoff_a=CUTOFF_A, potentials=False),
    "crystal_arrays, with potentials": lambda s: crystal_arrays(s, cutoff_a=CUTOFF_A),
    "pymatgen get_all_neighbors": lambda s: s.get_all_neighbors(CUTOFF_A),
    "ASE neighbor_list": ase_edges,
}


def edges(centre: np.ndarray, neighbour: np.ndarray, vector: np.ndarray) -> Counter[tuple[int, ...]]:
    """Edges as a multiset: the atoms, and the vector to a thousandth of an Angstrom."""
    # no round number of Angstrom lies on a limit, where two ways to compute it could part
    rounded = np.floor(vector * 1000 + 0.3137).astype(int)
    return Counter(map(tuple, np.column_stack([centre, neighbour, rounded]).tolist()))


def compare(structures: Iterable[Structure]) -> int:
    """Compare edges with ASE's; return how many there are."""
    total = 0
    for structure in structures:
        found = neighbours(structure.lattice.matrix, structure.cart_coords, CUTOFF_A)
        mine, ases = edges(found.centre, found.neighbour, found.vector), edges(*ase_edges(structure))
        assert mine == ases, f"{structure.formula}: {sum(mine.values())} edges, ASE has {sum(ases.values())}"
        total += sum(mine.values())
    return total


def microseconds(structures: list[Structure]) -> dict[str, list[float]]:
    """CPU time of every way for every structure, the median of some rounds; all ways in turn."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for structure in structures:
        rounds: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(ROUNDS):
            for name, way in WAYS.items():
                began = time.process_time_ns()
                way(structure)
                rounds[name].append((time.process_time_ns() - began) / 1000)
        for name in WAYS:
            times[name].append(median(rounds[name]))
    return times


def report(title: str, structures: list[Structure]) -> None:
    """Print one table."""
    atoms = [len(structure) for structure in structures]
    print(f"\n{title}: {len(structures)} structures of {min(atoms)} to {max(atoms)} atoms, mean {np.mean(atoms):.1f}")
    print(f"{'us of CPU a structure':36}{'median':>9}{'mean':>9}{'p99':>9}{'largest':>9}")
    for name, values in microseconds(structures).items():
        figures = (median(values), np.mean(values), np.percentile(values, 99), max(values))
        print(f"{name:36}" + "".join(f"{figure:9.0f}" for figure in figures))


def main() -> None:
    """Compare, then print a table for all structures and one for those of about ten atoms."""
    embedded = [record.structure for record in embedded_records() if record.structure is not None]
    sets = {"embedded": embedded}
    for path in sys.argv[1:]:
        given = source({"kind": "structures", "path": path})
        sets[path] = [record.structure for record in map(given.read, given.items()) if record.structure is not None]
    for structures in sets.values():
        sample = structures[:: max(1, len(structures) // SAMPLE)]
        print(f"{compare(sample)} edges of {len(sample)} structures are exactly ASE's")
    for title, structures in sets.items():
        report(title, structures[:: max(1, len(structures) // 200)])
    ten = [structure for structures in sets.values() for structure in structures if 8 <= len(structure) <= 12]
    # cells of 2 to 5 atoms, repeated and deformed so that nothing reduces them again
    rng = np.random.default_rng(0)
    made = []
    for structure in embedded[::5]:
        larger = structure.make_supercell((1, 1, max(1, round(10 / len(structure)))), in_place=False)
        if 8 <= len(larger) <= 12:
            shifts = rng.normal(scale=0.05, size=(len(larger), 3))
            positions = larger.cart_coords + shifts
            made.append(Structure(larger.lattice, larger.species, positions, coords_are_cartesian=True))
    report("about ten atoms, embedded cells repeated and distorted", made)
    if ten:
        report("about ten atoms, as given", ten[:: max(1, len(ten) // 200)])


if __name__ == "__main__":
    main()
