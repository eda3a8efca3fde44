"""Cells from CHGNet: isotropic volume scan, full relaxation where symmetry allows it, equation of state, symmetry."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.embedded.generate.catalog import Candidate, candidates
from shards.embedded.generate.packages import require
from shards.embedded.generate.workspace import Deadline, Workspace, work

FloatArray = NDArray[np.float64]

STAGE = "relaxed"
EV_PER_A3_IN_GPA = 160.21766208
SYMMETRY_BEFORE, SYMMETRY_AFTER = 0.01, 0.03  # symprec, Angstrom
FORCE_LIMIT = 0.02  # eV/Angstrom
MAX_STEPS = 150


def relax_all(space: Workspace, only: list[str] | None, deadline: Deadline) -> None:
    """Relax every candidate (or those named in ``only``).

    Parameters
    ----------
    space
        Results: ``relaxed/<id>.json``.
    only
        Ids, or None for all.
    deadline
        No crystal is started after it.
    """
    require("ase", "spglib", "pymatgen", "chgnet")
    model = CellModel()
    chosen = {c.id: c for c in candidates() if only is None or c.id in only}
    work(space, STAGE, chosen, lambda name: (relax(chosen[name], model), None), deadline)


class CellModel:
    """CHGNet's pretrained energy model and its optimiser, loaded once a process."""

    def __init__(self) -> None:
        import chgnet
        import torch
        from chgnet.model import CHGNet, StructOptimizer

        torch.set_num_threads(1)
        self.version = chgnet.__version__
        self.model = CHGNet.load(use_device="cpu", verbose=False)
        self.optimiser = StructOptimizer(model=self.model, use_device="cpu")

    def energies(self, cell: FloatArray, species: list[str], frac: FloatArray, scales: FloatArray) -> FloatArray:
        """Energies (eV a cell) of the crystal at several linear scales of its cell."""
        structures = [structure(cell * scale, species, frac) for scale in scales]
        predicted = self.model.predict_structure(structures, task="e", batch_size=32)
        return np.array([float(p["e"]) for p in predicted]) * len(species)

    def relax_fully(self, cell: FloatArray, species: list[str], frac: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Relax cell and positions; returns (cell, frac)."""
        start = structure(cell, species, frac)
        result = self.optimiser.relax(start, fmax=FORCE_LIMIT, steps=MAX_STEPS, verbose=False)
        final: Any = result["final_structure"]
        return final.lattice.matrix.copy(), final.frac_coords.copy()


def structure(cell: FloatArray, species: list[str], frac: FloatArray) -> Any:
    """The pymatgen structure of a cell (rows, Angstrom)."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(cell), species, frac)


def relax(candidate: Candidate, model: CellModel) -> dict[str, Any]:
    """Relax one candidate and check that it stayed what it was.

    Returns
    -------
    dict
        The fields of ``relaxed/<id>.json``: cell (rows, Angstrom), frac, species, space group, CHGNet's bulk modulus.

    Raises
    ------
    ValueError
        When there is no energy minimum, the space group changed, or the volume is outside 2 to 150 A^3 an atom.
    """
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    species = candidate.atoms.get_chemical_symbols()
    frac = candidate.atoms.get_scaled_positions()
    cell = candidate.atoms.cell[:].copy()
    before = SpacegroupAnalyzer(structure(cell, species, frac), SYMMETRY_BEFORE).get_space_group_number()

    cell, modulus = scan_volume(model, cell, species, frac)
    method = "chgnet_isotropic_scan"
    if candidate.frees_cell:
        cell, frac = model.relax_fully(cell, species, frac)
        cell, modulus = scan_volume(model, cell, species, frac)
        method = "chgnet_full_relax_then_isotropic_scan"

    relaxed = structure(cell, species, frac)
    symmetry = SpacegroupAnalyzer(relaxed, SYMMETRY_AFTER)
    after = symmetry.get_space_group_number()
    if after != before:
        raise ValueError(f"space group {before} -> {after}")
    if not 2 < relaxed.volume / len(species) < 150:
        raise ValueError(f"volume {relaxed.volume / len(species):.1f} A^3 an atom")
    if candidate.frees_cell:
        cell, frac = symmetrise(cell, species, frac)
    return {
        "id": candidate.id,
        "formula": relaxed.composition.reduced_formula,
        "prototype": candidate.prototype,
        "is_known": candidate.is_known,
        "species": species,
        "cell": cell.tolist(),
        "frac": (np.round(frac, 12 if candidate.frees_cell else 8) % 1).tolist(),
        "spacegroup": symmetry.get_space_group_symbol(),
        "spacegroup_number": before,
        "bulk_modulus_chgnet_gpa": float(modulus),
        "relaxation": method,
        "chgnet": model.version,
    }


def scan_volume(model: CellModel, cell: FloatArray, species: list[str], frac: FloatArray) -> tuple[FloatArray, float]:
    """Find the best isotropic scale of a cell: a wide and a narrow grid, then two Birch-Murnaghan fits.

    Returns
    -------
    cell : (3, 3)
        At the minimum, Angstrom.
    modulus
        Bulk modulus, GPa.

    Raises
    ------
    ValueError
        When the minimum lies outside the points that were fitted, or the modulus is not positive.
    """
    from ase.eos import EquationOfState

    volume = abs(np.linalg.det(cell))
    best = 1.0
    for low, high, points in ((0.78, 1.30, 27), (0.96, 1.04, 9)):
        scales = best * np.linspace(low, high, points)
        best = scales[int(model.energies(cell, species, frac, scales).argmin())]
    for _ in range(2):
        scales = best * np.linspace(0.976, 1.024, 9)
        volumes = volume * scales**3
        energies = model.energies(cell, species, frac, scales)
        minimum, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit(warn=False)
        best = (minimum / volume) ** (1 / 3)
    if not (volumes[0] < minimum < volumes[-1] and modulus > 0):
        raise ValueError(f"no minimum: scale {best:.3f}, modulus {modulus * EV_PER_A3_IN_GPA:.1f} GPa")
    return cell * best, modulus * EV_PER_A3_IN_GPA


def symmetrise(cell: FloatArray, species: list[str], frac: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Put a relaxed cell back on its exact symmetry; without it GPAW finds fewer symmetries and needs more k-points."""
    from ase import Atoms
    from ase.spacegroup.symmetrize import refine_symmetry

    atoms = Atoms(species, scaled_positions=frac, cell=cell, pbc=True)
    refine_symmetry(atoms, symprec=SYMMETRY_AFTER)
    return atoms.cell[:].copy(), atoms.get_scaled_positions()
