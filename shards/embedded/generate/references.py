"""Energies of the elements that are not crystals of the set: molecules in a box and a few solids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.embedded.generate.electronic import (
    K_DENSITY,
    calculator,
    crystal_convergence,
    gamma_mesh,
    half,
    molecule_convergence,
    prepare_gpaw,
    valence_electrons,
)
from shards.embedded.generate.workspace import Deadline, Workspace, work

STAGE = "references"
BOX_A = (6.5, 6.6, 7.5)
DCDFT_SOLIDS = ("Bi", "B", "As", "Se", "Te")  # at the all-electron PBE geometry of ase's dcdft collection


@dataclass(frozen=True)
class Molecule:
    """A diatomic: starting bond (Angstrom), moment an atom, half width of the three-point bond scan (Angstrom)."""

    bond_a: float
    step_a: float = 0.03
    moment: float = 0.0


MOLECULES = {
    "O": Molecule(1.23, moment=1.0),
    "F": Molecule(1.42),
    "N": Molecule(1.11),
    "Cl": Molecule(2.0, step_a=0.045),
    "H": Molecule(0.75),
    "Br": Molecule(2.30, step_a=0.045),
    "I": Molecule(2.68, step_a=0.045),
}


@dataclass(frozen=True)
class Solid:
    """A reference crystal, the linear scales to try (the lowest energy counts), its starting moment an atom."""

    atoms: Any
    scales: tuple[float, ...] = (1.0,)
    moment: float = 0.0


def reference_all(space: Workspace, only: list[str] | None, deadline: Deadline) -> None:
    """Compute ``references/<element>.json`` with ``energy_ev_per_atom`` (GPAW's scale).

    Parameters
    ----------
    space, deadline
        Where, and until when.
    only
        Element symbols, or None for all.
    """
    prepare_gpaw()
    solids = _solids()

    def compute(symbol: str) -> tuple[dict[str, Any], None]:
        if symbol in MOLECULES:
            return _molecule(space, symbol, MOLECULES[symbol]), None
        return _solid(space, symbol, solids[symbol]), None

    names = [s for s in (*MOLECULES, *solids) if only is None or s in only]
    work(space, STAGE, names, compute, deadline)


def _molecule(space: Workspace, symbol: str, molecule: Molecule) -> dict[str, Any]:
    """Energy at the minimum of a parabola through three bond lengths."""
    from ase import Atoms

    n_bands = half(valence_electrons([symbol, symbol])) + 3
    offsets = np.array([-molecule.step_a, 0.0, molecule.step_a])
    energies = []
    for offset in offsets:
        positions = [(0, 0, 0), (0, 0, molecule.bond_a + offset)]
        atoms = Atoms([symbol, symbol], positions=positions, cell=BOX_A, pbc=True)
        atoms.center()
        if molecule.moment:
            atoms.set_initial_magnetic_moments([molecule.moment] * 2)
        atoms.calc = calculator(
            n_bands,
            space.path(STAGE, symbol, ".txt"),
            convergence=molecule_convergence(),
            kpts=(1, 1, 1),
            fixed_moment=bool(molecule.moment),
            max_iterations=100,
        )
        energies.append(float(atoms.get_potential_energy()))
    parabola = np.polyfit(offsets, energies, 2)
    best = -parabola[1] / 2 / parabola[0]
    return {
        "species": symbol,
        "kind": "molecule in a box",
        "energy_ev_per_atom": float(np.polyval(parabola, best)) / 2,
        "bond_a": float(molecule.bond_a + best),
        "energies_ev": energies,
        "magnetic_moment": 2 * molecule.moment,
    }


def _solid(space: Workspace, symbol: str, solid: Solid) -> dict[str, Any]:
    energies = []
    moment = 0.0
    for scale in solid.scales:
        atoms = solid.atoms.copy()
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
        if solid.moment:
            atoms.set_initial_magnetic_moments([solid.moment] * len(atoms))
        n_bands = half(valence_electrons(atoms.get_chemical_symbols())) + 4 + len(atoms)
        atoms.calc = calculator(
            n_bands,
            space.path(STAGE, symbol, ".txt"),
            convergence=crystal_convergence(len(atoms)),
            kpts=gamma_mesh(K_DENSITY),
        )
        energies.append(float(atoms.get_potential_energy(force_consistent=False)) / len(atoms))
        moment = float(atoms.calc.get_magnetic_moment()) if solid.moment else 0.0
    return {
        "species": symbol,
        "kind": "solid (not a record)",
        "energy_ev_per_atom": min(energies),
        "energies_ev": energies,
        "scales": list(solid.scales),
        "magnetic_moment": moment,
    }


def _solids() -> dict[str, Solid]:
    from ase.build import bulk
    from ase.collections import dcdft

    found = {
        "Ni": Solid(bulk("Ni", "fcc", a=3.52), moment=0.8),
        "Co": Solid(bulk("Co", "hcp", a=2.50, c=4.04), moment=1.7),
        "S": Solid(_sulfur_chains(), scales=(1.0, 1.02)),
    }
    return found | {symbol: Solid(dcdft[symbol]) for symbol in DCDFT_SOLIDS}


def _sulfur_chains() -> Any:
    """Trigonal S chains (the structure of Se), with S-S bonds of 2.07 A: cheap, where S8 has 128 atoms."""
    from ase import Atoms

    a, c, bond = 4.20, 4.30, 2.07
    u = np.sqrt((bond**2 - (c / 3) ** 2) / 3) / a
    return Atoms(
        "S3",
        scaled_positions=[(u, 0, 1 / 3), (0, u, 2 / 3), (-u, -u, 0)],
        cell=[[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, c]],
        pbc=True,
    )
