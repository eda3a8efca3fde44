"""Elemental reference energies, and formation energies against them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from shards.embedded.generate.catalog import ELEMENT_PROTOTYPES, ELEMENTS
from shards.embedded.generate.workspace import Workspace

# An element's crystals count only when the usual ground state is among them (In: fcc or bct, so not listed).
GROUND_STATE = {
    **{s: f"{s}_{kind}" for kind in ("bcc", "hcp", "diamond") for s in ELEMENTS[kind].split()},
    **{s: f"{s}_fcc" for s in ["Ca", "Sr", "Al", "Cu", "Ag", "Au", "Pd", "Pt", "Rh", "Ir", "Pb", "La"]},
    **{s: f"{s}_ground" for s in ["As", "Sb", "Se", "Te", "P", "Ga"]},
}
ALWAYS_FROM_REFERENCES = frozenset({"Ni", "Bi", "B", "S", "Co"})
NO_FORMATION_ENERGY = frozenset({"Co"})  # its compounds would need spin-polarised calculations


def elemental_energies(space: Workspace) -> dict[str, dict[str, Any]]:
    """Lowest energy an atom of each element, among the crystals and the molecules and solids of `references`.

    Returns
    -------
    dict
        Symbol -> ``{"energy_ev_per_atom": float, "source": str}``, sorted by symbol.
    """
    solved = space.names("scf")
    best: dict[str, tuple[float, str]] = {}
    for name in solved:
        crystal = space.read("relaxed", name)
        symbol = crystal["species"][0]
        if crystal["prototype"] not in ELEMENT_PROTOTYPES or symbol in ("S", "B"):
            continue
        energy = space.read("scf", name)["energy_ev"] / len(crystal["species"])
        if symbol not in best or energy < best[symbol][0]:
            best[symbol] = (energy, name)
    best = {s: found for s, found in best.items() if GROUND_STATE.get(s, found[1]) in solved}
    for symbol in space.names("references"):
        reference = space.read("references", symbol)
        energy = reference["energy_ev_per_atom"]
        if symbol in ALWAYS_FROM_REFERENCES or symbol not in best or energy < best[symbol][0]:
            best[symbol] = (energy, reference["kind"])
    return {s: {"energy_ev_per_atom": round(e, 5), "source": source} for s, (e, source) in sorted(best.items())}


def formation_energy(energy_ev: float, species: list[str], references: dict[str, dict[str, Any]]) -> float | None:
    """Formation energy (eV an atom) of a cell, or None where a reference is missing or not comparable.

    Parameters
    ----------
    energy_ev
        Of the cell, on GPAW's scale.
    species
        One symbol an atom.
    references
        From `elemental_energies`.
    """
    counts = Counter(species)
    if any(s not in references or s in NO_FORMATION_ENERGY for s in counts):
        return None
    elements = sum(n * references[s]["energy_ev_per_atom"] for s, n in counts.items())
    return (energy_ev - elements) / len(species)
