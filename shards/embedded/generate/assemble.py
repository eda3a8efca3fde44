"""The files of the set: checks, one record a crystal, arrays, references, log and a report of the checks."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.embedded.generate.bands import WINDOW_EV
from shards.embedded.generate.checks import Solved, apply_gap_check, problems
from shards.embedded.generate.electronic import settings
from shards.embedded.generate.energies import elemental_energies, formation_energy
from shards.embedded.generate.eos import STRAINS
from shards.embedded.generate.packages import require
from shards.embedded.generate.report import report
from shards.embedded.generate.workspace import Workspace, write_arrays, write_text

EOS_VOLUME_RATIO = (0.94, 1.06)  # beyond, the minimum was not bracketed by the strains
AMU_PER_A3_IN_G_CM3 = 1.66053907
ELECTRONIC_FIELDS = (
    "energy_ev_per_atom",
    "formation_energy_ev_per_atom",
    "band_gap_ev",
    "direct_gap_ev",
    "is_metal",
    "fermi_energy_ev",
    "vbm_ev",
    "dos_zero_ev",
    "dos_at_zero_states_per_ev_cell",
    "dos_complete_up_to_ev",
    "electrons_below_dos_window",
    "dos_integral_to_fermi_electrons",
    "n_valence_electrons",
    "charge_density_raw_integral_electrons",
    "charge_density_float16_integral_electrons",
    "band_gap_checked_on_denser_mesh",
)


def assemble(space: Workspace, out: Path) -> None:
    """Write the data set from whatever stages are done; may be run again at any time.

    Parameters
    ----------
    space
        The working folder.
    out
        Receives records.json.gz, dos.npz, charge_density.npz, elemental_references.json, generation_log.json and
        checks.txt.
    """
    require("ase")
    out.mkdir(parents=True, exist_ok=True)
    references = elemental_energies(space)
    kept: dict[str, Solved] = {}
    dropped: dict[str, str] = {}
    for name in space.names("scf"):
        solved = _solved(space, name, references)
        found = problems(solved)
        if found:
            dropped[name] = "; ".join(found)
        else:
            kept[name] = solved
    failed = space.failures("scf")
    reasons = {n: f"dropped: {why}" for n, why in dropped.items()} | {n: f"failed: {why}" for n, why in failed.items()}
    run = settings() if space.names("scf") else {"id": None}
    records = [record(space, name, kept.get(name), reasons.get(name), run["id"]) for name in space.names("relaxed")]

    write_records(out / "records.json.gz", records)
    dos = {"energy_ev": WINDOW_EV.astype(np.float32)} | {n: s.dos for n, s in kept.items()}
    write_arrays(out / "dos.npz", dos)
    write_arrays(out / "charge_density.npz", {n: s.density for n, s in kept.items()})
    write_text(out / "elemental_references.json", json.dumps(references, indent=1))
    log = {
        "settings": run,
        "n_candidates": len(space.names("relaxed")) + len(space.failures("relaxed")),
        "relax_failed": space.failures("relaxed"),
        "scf_done": len(space.names("scf")),
        "scf_failed": failed,
        "dropped": dropped,
    }
    write_text(out / "generation_log.json", json.dumps(log, indent=1))
    text = report(records, log)
    write_text(out / "checks.txt", text)
    print(text)


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records sorted by id as compact JSON in a gzip file whose bytes depend on the content alone."""
    ordered = sorted(records, key=lambda r: r["id"])
    raw = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as stream:
        stream.write(raw)
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(packed.getvalue())
    partial.replace(path)


def _solved(space: Workspace, name: str, references: dict[str, dict[str, Any]]) -> Solved:
    crystal, scf, arrays = space.read("relaxed", name), space.read("scf", name), space.arrays("scf", name)
    solved = Solved(
        crystal=crystal,
        scf=scf,
        dos=arrays["dos"].astype(np.float32),
        density=arrays["density"].astype(np.float16),
        gap_ev=scf["gap_ev"],
        direct_gap_ev=scf["direct_gap_ev"],
        is_metal=scf["is_metal"],
    )
    solved = apply_gap_check(solved, space.read("gap", name) if space.has("gap", name) else None)
    return replace(solved, formation_ev=formation_energy(scf["energy_ev"], crystal["species"], references))


def record(
    space: Workspace, name: str, solved: Solved | None, reason: str | None, scf_id: str | None
) -> dict[str, Any]:
    """One crystal's record; electronic fields are null when it has no accepted calculation.

    Parameters
    ----------
    space, name
        Where the crystal's stages lie.
    solved
        Its accepted calculation, or None.
    reason
        Why there is none (None together with ``solved`` None: not run).
    scf_id
        Name of the SCF settings, for the provenance.
    """
    crystal = space.read("relaxed", name)
    text = space.read("text", name) if space.has("text", name) else {"text": None, "method": None}
    eos = _usable_eos(space, name) if solved else None
    return {
        **structure_fields(crystal),
        "tier": "complete" if solved else "structure",
        "no_dft_because": None if solved else reason or "not run",
        **electronic_fields(solved),
        "bulk_modulus_chgnet_gpa": round(crystal["bulk_modulus_chgnet_gpa"], 3),
        "bulk_modulus_dft_gpa": _rounded(eos["bulk_modulus_gpa"] if eos else None, 3),
        "volume_dft_eos_per_atom_a3": _rounded(eos["volume_a3"] / len(crystal["species"]) if eos else None, 5),
        "text": text["text"],
        "provenance": {
            "relaxation": crystal["relaxation"],
            "chgnet": crystal["chgnet"],
            "text": text["method"],
            "scf": scf_id if solved else None,
            "n_kpoints_irreducible": solved.scf["n_kpoints"] if solved else None,
            "n_bands": solved.scf["n_bands"] if solved else None,
            "scf_iterations": solved.scf["iterations"] if solved else None,
            "seconds": solved.scf["seconds"] if solved else None,
            "eos": eos and _eos_provenance(eos),
        },
    }


def structure_fields(crystal: dict[str, Any]) -> dict[str, Any]:
    """The fields every record has: identity, cell (rows, Angstrom), density (g/cm^3)."""
    from ase.data import atomic_masses, atomic_numbers

    cell, species = np.array(crystal["cell"]), crystal["species"]
    volume = float(abs(np.linalg.det(cell)))
    mass = sum(float(atomic_masses[atomic_numbers[s]]) for s in species)
    return {
        "id": crystal["id"],
        "formula": crystal["formula"],
        "prototype": crystal["prototype"],
        "spacegroup": crystal["spacegroup"],
        "spacegroup_number": crystal["spacegroup_number"],
        "is_known": crystal["is_known"],
        "n_atoms": len(species),
        "lattice_a": np.round(cell, 6).tolist(),
        "species": species,
        "frac_coords": np.round(np.array(crystal["frac"]), 8).tolist(),
        "volume_per_atom_a3": round(volume / len(species), 5),
        "density_g_cm3": round(mass / volume * AMU_PER_A3_IN_G_CM3, 5),
    }


def electronic_fields(solved: Solved | None) -> dict[str, Any]:
    """The fields of a DFT calculation; all null without one."""
    if solved is None:
        return dict.fromkeys(ELECTRONIC_FIELDS)
    scf = solved.scf
    at_zero = float(solved.dos[int(np.argmin(abs(WINDOW_EV)))])
    values = (
        round(scf["energy_ev"] / solved.n_atoms, 6),
        _rounded(solved.formation_ev, 5),
        round(solved.gap_ev, 4),
        round(solved.direct_gap_ev, 4),
        solved.is_metal,
        round(scf["fermi_ev"], 4),
        None if solved.is_metal else round(scf["vbm_ev"], 4),
        round(scf["zero_ev"], 4),
        round(at_zero, 4) if solved.is_metal else 0.0,
        round(min(scf["dos_complete_up_to_ev"], 10.0), 3),
        round(scf["electrons_below_window"], 3),
        round(scf["electrons_to_fermi"], 4),
        scf["n_valence"],
        round(scf["density_raw_integral"], 4),
        round(solved.density_integral, 4),
        solved.gap_checked,
    )
    return dict(zip(ELECTRONIC_FIELDS, values, strict=True))


def _usable_eos(space: Workspace, name: str) -> dict[str, Any] | None:
    if not space.has("eos", name):
        return None
    eos = space.read("eos", name)
    low, high = EOS_VOLUME_RATIO
    return eos if eos["bulk_modulus_gpa"] > 0 and low < eos["volume_ratio"] < high else None


def _eos_provenance(eos: dict[str, Any]) -> dict[str, Any]:
    return {
        "pw_cutoff_ev": eos["pw_cutoff_ev"],
        "kpt_density_a": eos["kpt_density_a"],
        "strains": list(STRAINS),
        "fit_rms_mev": round(eos["fit_rms_mev"], 3),
        "seconds": round(eos["seconds"], 1),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits) + 0.0  # no -0.0
