"""Units, as labels carry them at the end of their names: ``band_gap_ev`` is a band gap in eV."""

from __future__ import annotations

UNITS = {
    "ev_per_atom": "eV/atom",
    "mev_per_atom": "meV/atom",
    "ev_per_a": "eV/A",
    "ev_per_a3": "eV/A^3",
    "ev": "eV",
    "mev": "meV",
    "ha": "Ha",
    "kj_per_mol": "kJ/mol",
    "kcal_per_mol": "kcal/mol",
    "j_per_m2": "J/m^2",
    "gpa": "GPa",
    "mpa": "MPa",
    "a3": "A^3",
    "per_atom_a3": "A^3/atom",
    "a3_per_atom": "A^3/atom",
    "g_cm3": "g/cm^3",
    "g_per_cm3": "g/cm^3",
    "w_per_m_k": "W/(m K)",
    "s_per_cm": "S/cm",
    "ub": "uB",
    "ub_per_atom": "uB/atom",
    "per_cm": "1/cm",
    "mah_per_g": "mAh/g",
    "pct": "%",
    "deg": "deg",
    "nm": "nm",
    "v": "V",
    "k": "K",
    "a": "A",
}


def describe(label: str) -> tuple[str, str]:
    """Return a label's plain name and its unit: ``("formation energy", "eV/atom")``; no known unit gives ``""``."""
    # of a component, ``elastic_gpa[0,1]``, the name carries the unit
    name, bracket, index = label.partition("[")
    suffix = max((u for u in UNITS if name.endswith(f"_{u}")), key=len, default=None)
    if suffix is None:
        return label.replace("_", " "), ""
    return name.removesuffix(f"_{suffix}").replace("_", " ") + bracket + index, UNITS[suffix]
