"""Units, as labels carry them at the end of their names: ``band_gap_ev`` is a band gap in eV."""

from __future__ import annotations

UNITS = {
    "ev_per_atom": "eV/atom",
    "ev": "eV",
    "gpa": "GPa",
    "a3": "A^3",
    "per_atom_a3": "A^3/atom",
    "g_cm3": "g/cm^3",
    "k": "K",
    "a": "A",
}


def describe(label: str) -> tuple[str, str]:
    """Return a label's plain name and its unit: ``("formation energy", "eV/atom")``; no known unit gives ``""``."""
    suffix = max((u for u in UNITS if label.endswith(f"_{u}")), key=len, default=None)
    if suffix is None:
        return label.replace("_", " "), ""
    return label.removesuffix(f"_{suffix}").replace("_", " "), UNITS[suffix]
