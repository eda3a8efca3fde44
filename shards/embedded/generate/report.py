"""The table of checks: counts, integrals, and comparison with quoted gaps and all-electron elemental references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from shards.embedded.generate.catalog import ELEMENT_PROTOTYPES
from shards.embedded.generate.energies import GROUND_STATE

# Commonly quoted scalar-relativistic PBE gaps (eV), rounded; from memory, not looked up.
QUOTED_GAPS = {
    "Si_diamond": 0.6, "C_diamond": 4.1, "Ge_diamond": 0.0, "GaAs_zincblende": 0.5, "GaP_zincblende": 1.6,
    "GaN_zincblende": 1.7, "AlN_zincblende": 3.3, "AlP_zincblende": 1.6, "AlAs_zincblende": 1.5,
    "BN_zincblende": 4.5, "CSi_zincblende": 1.4, "MgO_rocksalt": 4.5, "NaCl_rocksalt": 5.0, "LiF_rocksalt": 9.0,
    "LiCl_rocksalt": 6.3, "KCl_rocksalt": 5.1, "CaO_rocksalt": 3.7, "ZnS_zincblende": 2.0, "ZnSe_zincblende": 1.2,
    "ZnTe_zincblende": 1.1, "CdS_zincblende": 1.1, "CdTe_zincblende": 0.6, "ZnO_zincblende": 0.7,
    "SrTiO3_perovskite": 1.8, "CaF2_fluorite": 7.0, "Li2O_antifluorite": 5.0, "Mg2Si_antifluorite": 0.2,
    "InP_zincblende": 0.6, "BP_zincblende": 1.25, "PbTe_rocksalt": 0.8, "Ne_fcc": 11.5, "Ar_fcc": 8.7,
}  # fmt: skip


def report(records: list[dict[str, Any]], log: dict[str, Any]) -> str:
    """Describe the assembled set in plain text.

    Parameters
    ----------
    records
        All records.
    log
        The content of ``generation_log.json``.
    """
    complete = {r["id"]: r for r in records if r["tier"] == "complete"}
    lines = [
        f"records {len(records)}, complete {len(complete)}, SCF done {log['scf_done']}, "
        f"failed {len(log['scf_failed'])}, dropped {len(log['dropped'])}"
    ]
    if complete:
        lines += [*_counts(complete), *_integrals(complete), *_gaps(complete), *_elements(complete)]
        lines += _formation(complete)
    return "\n".join(lines) + "\n"


def _counts(complete: dict[str, dict[str, Any]]) -> Iterator[str]:
    rows = complete.values()
    yield f"prototypes {dict(Counter(r['prototype'] for r in rows))}"
    yield f"known {sum(r['is_known'] for r in rows)}, metals {sum(r['is_metal'] for r in rows)}"
    for field in ("formation_energy_ev_per_atom", "text", "bulk_modulus_dft_gpa"):
        yield f"with {field}: {sum(r[field] is not None for r in rows)}"
    full = np.array([r["dos_complete_up_to_ev"] for r in rows])
    yield f"DOS complete to +10 eV: {(full >= 10).sum()}, to at least +5 eV: {(full >= 5).sum()}"


def _integrals(complete: dict[str, dict[str, Any]]) -> Iterator[str]:
    for field in (
        "dos_integral_to_fermi_electrons",
        "charge_density_raw_integral_electrons",
        "charge_density_float16_integral_electrons",
    ):
        errors = np.array([abs(r[field] / r["n_valence_electrons"] - 1) for r in complete.values()])
        yield f"{field}: relative error max {errors.max():.5f}, mean {errors.mean():.5f}"


def _gaps(complete: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "gap (eV): id, ours, quoted"
    differences = []
    for name, quoted in QUOTED_GAPS.items():
        if name in complete:
            gap = complete[name]["band_gap_ev"]
            differences.append(abs(gap - quoted))
            yield f"  {name:<20} {gap:.2f}  {quoted:.2f}"
    if differences:
        yield f"  n={len(differences)} mean abs difference {np.mean(differences):.3f}, max {max(differences):.2f}"


def _elements(complete: dict[str, dict[str, Any]]) -> Iterator[str]:
    from ase.collections import dcdft

    yield "elements against all-electron PBE (WIEN2k, in ase dcdft): volume A^3 ours/ref; modulus GPa CHGNet, DFT, ref"
    for name, r in complete.items():
        symbol = r["species"][0]
        is_ground_state = r["prototype"] in ELEMENT_PROTOTYPES and GROUND_STATE.get(symbol) == name
        # carbon: dcdft holds graphite, ours is diamond
        if not is_ground_state or symbol not in dcdft.names or symbol == "C":
            continue
        reference = dcdft.data[symbol]
        yield (
            f"  {name:<12} V {r['volume_per_atom_a3']:.2f} / {reference['wien2k_volume']:.2f}  "
            f"B {r['bulk_modulus_chgnet_gpa']:.1f}  {r['bulk_modulus_dft_gpa']}  {reference['wien2k_B']:.1f}"
        )
    pairs = [(r["bulk_modulus_chgnet_gpa"], r["bulk_modulus_dft_gpa"]) for r in complete.values()]
    both = np.array([p for p in pairs if p[1] is not None])
    if len(both) > 2:
        correlation = np.corrcoef(both.T)[0, 1]
        error = np.abs(both[:, 0] - both[:, 1]).mean()
        yield f"CHGNet against DFT modulus: n={len(both)} r={correlation:.3f} MAE {error:.1f} GPa"


def _formation(complete: dict[str, dict[str, Any]]) -> Iterator[str]:
    field = "formation_energy_ev_per_atom"
    compounds = [r for r in complete.values() if r["prototype"] not in ELEMENT_PROTOTYPES and r[field] is not None]
    if compounds:
        values = [r[field] for r in compounds]
        yield f"formation energies of compounds: n={len(values)} range {min(values):.2f}..{max(values):.2f} eV/atom"
        unstable = [(r["id"], r[field]) for r in compounds if r["is_known"] and r[field] > 0.1]
        yield f"known compounds above +0.1 eV/atom: {unstable}"
