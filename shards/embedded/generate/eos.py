"""A DFT equation of state for known crystals: bulk modulus and equilibrium volume."""

from __future__ import annotations

from typing import Any

import numpy as np

from shards.embedded.generate.catalog import NOBLE_GASES
from shards.embedded.generate.electronic import calculator, crystal_atoms, half, prepare_gpaw, valence_electrons
from shards.embedded.generate.relax import EV_PER_A3_IN_GPA
from shards.embedded.generate.workspace import Deadline, Workspace, work

STAGE = "eos"
STRAINS = (-0.03, -0.015, 0.0, 0.015, 0.03)  # of the lattice constants
CUTOFF_EV = 600.0
K_DENSITY = {True: 4.5, False: 3.0}  # metals, insulators; points per 1/Angstrom
CONVERGENCE = {"density": 1e-5, "energy": 2e-5, "eigenstates": 1e-7}
FIRST = [
    "Si_diamond",
    "Al_fcc",
    "MgO_rocksalt",
    "NaCl_rocksalt",
    "GaAs_zincblende",
    "Cu_fcc",
    "C_diamond",
    "LiF_rocksalt",
    "AlNi_CsCl",
]
_COST = {True: 21.0, False: 6.3}  # times the seconds of the SCF: metals use the denser mesh


def eos_order(space: Workspace, names: list[str]) -> list[str]:
    """A fixed head of well-measured solids, then the other known crystals with an SCF, cheapest first."""
    solved = [n for n in names if space.has("scf", n)]

    def cost(name: str) -> float:
        summary = space.read("scf", name)
        return summary["seconds"] * _COST[summary["is_metal"]]

    def wanted(name: str) -> bool:
        low_symmetry = name.endswith("_ground")
        return space.read("relaxed", name)["is_known"] and name.split("_")[0] not in NOBLE_GASES and not low_symmetry

    return [n for n in FIRST if n in solved] + sorted((n for n in solved if n not in FIRST and wanted(n)), key=cost)


def eos_all(space: Workspace, names: list[str], deadline: Deadline) -> None:
    """Run the stage: ``eos/<id>.json``."""
    prepare_gpaw()
    work(space, STAGE, eos_order(space, names), lambda n: (_equation_of_state(space, n), None), deadline)


def k_mesh(cell: np.ndarray, density: float) -> tuple[int, ...]:
    """Points along each reciprocal vector, fixed for all strains of one crystal so that the energies compare."""
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell).T, axis=1)
    return tuple(int(np.ceil(density * x - 1e-6)) for x in lengths)


def _equation_of_state(space: Workspace, name: str) -> dict[str, Any]:
    """Five strains, internal coordinates and shape fixed, and a Birch-Murnaghan fit."""
    from ase.eos import EquationOfState

    crystal = space.read("relaxed", name)
    density = K_DENSITY[space.read("scf", name)["is_metal"]]
    cell = np.array(crystal["cell"])
    n_bands = half(valence_electrons(crystal["species"])) + 2 + len(crystal["species"])
    volumes, energies = [], []
    for strain in STRAINS:
        atoms = crystal_atoms({**crystal, "cell": cell * (1 + strain)})
        atoms.calc = calculator(
            n_bands,
            space.path(STAGE, name, ".txt"),
            cutoff_ev=CUTOFF_EV,
            convergence=CONVERGENCE,
            kpts={"size": k_mesh(cell, density), "gamma": True},
        )
        energies.append(float(atoms.get_potential_energy()))
        volumes.append(float(atoms.get_volume()))
    minimum, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit(warn=False)
    x = np.array(volumes) ** (-2 / 3)
    residual = np.polyval(np.polyfit(x, energies, 3), x) - energies
    return {
        "id": name,
        "volumes_a3": volumes,
        "energies_ev": energies,
        "volume_a3": float(minimum),
        "volume_ratio": float(minimum / volumes[len(STRAINS) // 2]),
        "bulk_modulus_gpa": float(modulus * EV_PER_A3_IN_GPA),
        "fit_rms_mev": float(1e3 * np.sqrt(np.mean(residual**2))),
        "pw_cutoff_ev": CUTOFF_EV,
        "kpt_density_a": density,
    }
