"""GPAW: one PBE calculation a crystal (energy, band edges, DOS, valence density) and the re-check of small gaps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.embedded.generate.bands import band_edges, density_of_states, gaps
from shards.embedded.generate.grids import correct_at_nuclei, fourier_resample, gaussian_smooth
from shards.embedded.generate.packages import require
from shards.embedded.generate.workspace import Deadline, Workspace, work

FloatArray = NDArray[np.float64]

STAGE = "scf"
GAP_STAGE = "gap"
CUTOFF_EV = 450.0
K_DENSITY = 3.5  # points per 1/Angstrom
FERMI_WIDTH_EV = 0.05
MAX_ITERATIONS = 70
DENSITY_SIGMA_A = 0.2
DENSITY_POINTS = 32

CHECKED_GAPS_EV = (0.05, 0.4)  # a gap in between may be an accident of the k mesh
CHECK_K_DENSITY = 5.6

_CONVERGENCE = {"density": 1e-4, "energy": 1e-4, "eigenstates": 1e-6}
_EMPTY_D_BANDS = {
    **dict.fromkeys(["K", "Rb", "Ca", "Sr", "Sc", "Y", "Ti", "Zr", "Hf", "V", "Nb", "Ta", "Mo", "W"], 5),
    **dict.fromkeys(["Cs", "Ba", "La"], 8),
}


def settings() -> dict[str, Any]:
    """What every calculation of the set shares; written to ``generation_log.json``."""
    from importlib.metadata import version

    return {
        "code": f"GPAW {version('gpaw')}",
        "setups": f"gpaw-data {version('gpaw-data')} PAW (default)",
        "xc": "PBE",
        "spin": "none",
        "soc": "none",
        "pw_cutoff_ev": CUTOFF_EV,
        "kpts": f"Gamma-centred, density {K_DENSITY} points per 1/Angstrom",
        "occupations": f"Fermi-Dirac {FERMI_WIDTH_EV} eV",
        "convergence": "density 1e-4, energy 1e-4 eV/electron, eigenstates 1e-6",
        "dos": "bands interpolated linearly on a 3-4 times denser mesh, histogram 0.01 eV, Gaussian sigma 0.15 eV",
        "density": "PAW all-electron valence density (frozen core left out) on a 3-4 times refined grid, excess over "
        "N_valence taken out at the nuclei, Gaussian sigma 0.2 Angstrom, Fourier-resampled to 32x32x32",
        "id": "gpaw_pbe_pw450_k3.5",
    }


def prepare_gpaw() -> None:
    """Check that GPAW is there and keep it on one thread (call before its first import)."""
    require("ase", "gpaw", "gpaw_data")
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"


def calculator(
    n_bands: int,
    log: Path,
    *,
    convergence: dict[str, Any],
    kpts: Any,
    cutoff_ev: float = CUTOFF_EV,
    fixed_moment: bool = False,
    max_iterations: int = MAX_ITERATIONS,
    **options: Any,
) -> Any:
    """A plane-wave PBE calculator.

    Parameters
    ----------
    n_bands
        Bands in all, filled and empty.
    log
        GPAW's text output.
    convergence, kpts
        As GPAW takes them.
    cutoff_ev
        Plane-wave cut-off, eV.
    fixed_moment
        Fix the magnetic moment (the oxygen molecule).
    max_iterations
        SCF steps before GPAW gives up.
    """
    from gpaw import GPAW, PW, FermiDirac

    smearing = FermiDirac(FERMI_WIDTH_EV, fixmagmom=True) if fixed_moment else FermiDirac(FERMI_WIDTH_EV)
    return GPAW(
        mode=PW(cutoff_ev),
        xc="PBE",
        kpts=kpts,
        occupations=smearing,
        nbands=n_bands,
        txt=str(log),
        maxiter=max_iterations,
        convergence=convergence,
        **options,
    )


def gamma_mesh(density: float) -> dict[str, Any]:
    """A Gamma-centred mesh of a given density (points per 1/Angstrom)."""
    return {"density": density, "gamma": True}


def crystal_convergence(n_atoms: int) -> dict[str, Any]:
    """Convergence of a crystal: all but the highest ``n_atoms + 1`` bands, whose values nobody reads."""
    return {**_CONVERGENCE, "bands": -(n_atoms + 1)}


def molecule_convergence() -> dict[str, Any]:
    """Convergence of the occupied bands only."""
    return dict(_CONVERGENCE)


_valence: dict[str, int] = {}


def valence_electrons(species: list[str]) -> int:
    """Electrons outside the frozen cores of GPAW's default PBE setups."""
    from gpaw.setup import create_setup

    for symbol in species:
        if symbol not in _valence:
            _valence[symbol] = int(create_setup(symbol, "PBE").Nv)
    return sum(_valence[symbol] for symbol in species)


def empty_bands(species: list[str], volume: float) -> int:
    """Enough empty bands to reach about +10 eV: a free-electron count plus empty d shells.

    Parameters
    ----------
    species
        Symbols of the cell.
    volume
        Of the cell, cubic Angstrom.
    """
    return 4 + len(species) + int(np.ceil(0.065 * volume)) + sum(_EMPTY_D_BANDS.get(s, 0) for s in species)


def half(electrons: int) -> int:
    """Bands that the electrons fill, two a band."""
    return int(np.ceil(electrons / 2))


def crystal_atoms(crystal: dict[str, Any]) -> Any:
    """The ase Atoms of ``relaxed/<id>.json``."""
    from ase import Atoms

    return Atoms(crystal["species"], scaled_positions=crystal["frac"], cell=crystal["cell"], pbc=True)


def solve_all(space: Workspace, names: list[str], deadline: Deadline) -> None:
    """Run the SCF stage: ``scf/<id>.json`` and ``.npz`` (dos, density)."""
    prepare_gpaw()

    def compute(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return solve(space.read("relaxed", name), space.path(STAGE, name, ".txt"))

    work(space, STAGE, names, compute, deadline)


def solve(crystal: dict[str, Any], log: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One self-consistent calculation and what is derived from it.

    Parameters
    ----------
    crystal
        The fields of ``relaxed/<id>.json``.
    log
        Where GPAW writes.

    Returns
    -------
    summary
        Energies in eV on GPAW's scale (energy against its reference atoms), counts of electrons, settings used.
    arrays
        ``dos`` (601,) float32 states/eV/cell and ``density`` (32, 32, 32) float32 electrons/A^3.

    Raises
    ------
    RuntimeError
        When the SCF did not converge.
    """
    atoms = crystal_atoms(crystal)
    species = crystal["species"]
    electrons = valence_electrons(species)
    n_bands = half(electrons) + empty_bands(species, atoms.get_volume())
    calc = calculator(n_bands, log, convergence=crystal_convergence(len(atoms)), kpts=gamma_mesh(K_DENSITY))
    atoms.calc = calc
    energy = float(atoms.get_potential_energy(force_consistent=False))
    report = log.read_text()
    if "Converged in" not in report:
        raise RuntimeError("the SCF did not converge")

    bands = irreducible_bands(calc)
    fermi = float(calc.get_fermi_level())
    edges = band_edges(bands, electrons, fermi)
    dos = density_of_states(mesh_bands(calc, bands), edges, fermi, unconverged=len(atoms) + 1)
    density, raw_integral = valence_density(calc, atoms, electrons)
    summary = {
        "id": crystal["id"],
        "energy_ev": energy,
        "n_valence": electrons,
        "fermi_ev": fermi,
        "vbm_ev": edges.vbm_ev,
        "gap_ev": edges.gap_ev,
        "direct_gap_ev": edges.direct_ev,
        "is_metal": edges.is_metal,
        "zero_ev": edges.zero_ev,
        "electrons_to_fermi": dos.electrons_to_fermi,
        "electrons_below_window": dos.electrons_below_window,
        "dos_complete_up_to_ev": dos.complete_up_to_ev,
        "density_raw_integral": raw_integral,
        "density_min": float(density.min()),
        "n_kpoints": len(bands),
        "n_bands": n_bands,
        "iterations": sum(line.startswith("|iter:") for line in report.splitlines()),
    }
    return summary, {"dos": dos.states.astype(np.float32), "density": density.astype(np.float32)}


def irreducible_bands(calc: Any) -> FloatArray:
    """Eigenvalues (k, n) in eV on the irreducible k-points."""
    return np.array([calc.get_eigenvalues(k) for k in range(len(calc.get_ibz_k_points()))])


def mesh_bands(calc: Any, bands: FloatArray) -> FloatArray:
    """Unfold irreducible eigenvalues (k, n) to the whole mesh (kx, ky, kz, n)."""
    ibz = calc.dft.ibzwfs.ibz
    return bands[ibz.bz2ibz_K].reshape(*ibz.bz.size_c, bands.shape[1])


def valence_density(calc: Any, atoms: Any, electrons: int) -> tuple[FloatArray, float]:
    """The all-electron valence density on the stored grid.

    Returns
    -------
    density : (32, 32, 32)
        Electrons/A^3 at fractional coordinates (i, j, k) / 32; smoothed with sigma 0.2 A; integrates to ``electrons``.
    raw_integral
        Electrons on GPAW's refined grid, before the correction at the nuclei.
    """
    coarse = calc.dft.densities().nt_sR.desc.size_c
    refinement = 4 if max(coarse) <= 16 else 3
    density = calc.get_all_electron_density(gridrefinement=refinement, skip_core=True)
    density, raw_integral = correct_at_nuclei(density, atoms.get_scaled_positions(), atoms.get_volume(), electrons)
    smooth = gaussian_smooth(density, atoms.cell[:], DENSITY_SIGMA_A)
    return fourier_resample(smooth, DENSITY_POINTS), raw_integral


def recheck_gaps(space: Workspace, names: list[str], deadline: Deadline) -> None:
    """Repeat gaps of 0.05 to 0.4 eV on a denser mesh with few empty bands: ``gap/<id>.json``."""
    prepare_gpaw()
    low, high = CHECKED_GAPS_EV
    small = [n for n in names if space.has(STAGE, n) and low < space.read(STAGE, n)["gap_ev"] < high]
    work(space, GAP_STAGE, small, _gap_check(space), deadline)


def _gap_check(space: Workspace) -> Callable[[str], tuple[dict[str, Any], None]]:
    def compute(name: str) -> tuple[dict[str, Any], None]:
        atoms = crystal_atoms(space.read("relaxed", name))
        coarse = space.read(STAGE, name)
        filled = coarse["n_valence"] // 2
        calc = calculator(
            filled + 4,
            space.path(GAP_STAGE, name, ".txt"),
            convergence={**_CONVERGENCE, "bands": filled + 2},
            kpts=gamma_mesh(CHECK_K_DENSITY),
        )
        atoms.calc = calc
        atoms.get_potential_energy()
        gap, direct, _ = gaps(irreducible_bands(calc), coarse["n_valence"])
        return {"id": name, "gap_ev": max(0.0, gap), "direct_gap_ev": direct, "coarse_gap_ev": coarse["gap_ev"]}, None

    return compute
