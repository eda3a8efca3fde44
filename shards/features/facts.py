"""What a structure says of itself in words and numbers: the placeholders of a text template."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Lattice, Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

# Coarser than for a graph: cells of databases are relaxed to about this.
SYMPREC_A = 0.1
ABX3_ATOMS = 5
# 0.71 in the ideal cell; above this, cells that relaxed into something else are told apart no more
CLEARLY_NEARER = 0.85
Fact = str | float


class Facts:
    """The facts of one structure, each computed when it is first asked for.

    Parameters
    ----------
    structure : Structure
        Any ordered crystal.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure

    def __getitem__(self, name: str) -> Fact | None:
        """Return the fact called ``name`` (one of `FACTS`), None where the structure has no such."""
        return FACTS[name](self)

    @cached_property
    def symmetry(self) -> SpacegroupAnalyzer | None:
        """The space group, None where none is found."""
        from pymatgen.symmetry.analyzer import SpacegroupAnalyzer, SymmetryUndeterminedError

        try:
            return SpacegroupAnalyzer(self.structure, symprec=SYMPREC_A)
        except SymmetryUndeterminedError:
            return None

    @cached_property
    def lattice(self) -> Lattice | None:
        """Lattice of the conventional cell."""
        return None if self.symmetry is None else self.symmetry.get_conventional_standard_structure().lattice

    @cached_property
    def elements(self) -> list[Any]:
        """Elements, the least electronegative first."""
        return sorted(self.structure.composition.elements, key=_electronegativity)

    @cached_property
    def abx3(self) -> tuple[list[int], list[int]] | None:
        """Two cations and the three most electronegative atoms of a cell of five atoms."""
        species = [site.specie for site in self.structure]
        order = sorted(range(len(species)), key=lambda i: _electronegativity(species[i]))
        cations, anions = order[:2], order[2:]
        symbols = [species[i].symbol for i in cations]
        others = {species[i].symbol for i in anions}
        if len(order) != ABX3_ATOMS or others & set(symbols):
            return None
        return cations, anions

    @cached_property
    def perovskite(self) -> tuple[str, str] | None:
        """A and B of a perovskite ABX3: B is the cation that is clearly nearer to the anions."""
        if self.abx3 is None:
            return None
        cations, anions = self.abx3
        distance_a = self.structure.distance_matrix[np.ix_(cations, anions)].mean(axis=1)
        near, far = np.argsort(distance_a)
        if distance_a[near] > CLEARLY_NEARER * distance_a[far]:
            return None
        return self.structure[cations[far]].specie.symbol, self.structure[cations[near]].specie.symbol

    @cached_property
    def anions(self) -> str | None:
        """Elements on the anion sites of a cell ABX3."""
        if self.abx3 is None:
            return None
        return " and ".join(sorted({self.structure[i].specie.symbol for i in self.abx3[1]}))


def _electronegativity(element: Any) -> tuple[float, str]:
    return (0.0 if math.isnan(element.X) else float(element.X), element.symbol)


def _of_lattice(name: str) -> Callable[[Facts], Fact | None]:
    return lambda facts: None if facts.lattice is None else float(getattr(facts.lattice, name))


def _of_symmetry(name: str) -> Callable[[Facts], Fact | None]:
    return lambda facts: None if facts.symmetry is None else getattr(facts.symmetry, f"get_{name}")()


def _of_perovskite(which: int) -> Callable[[Facts], Fact | None]:
    return lambda facts: None if facts.perovskite is None else facts.perovskite[which]


# Lengths in Angstrom and angles in degrees, of the conventional cell; volume_per_atom in A^3, density in g/cm^3.
FACTS: Mapping[str, Callable[[Facts], Fact | None]] = {
    "formula": lambda facts: facts.structure.composition.reduced_formula,
    "chemical_system": lambda facts: facts.structure.composition.chemical_system,
    "elements": lambda facts: ", ".join(element.symbol for element in facts.elements),
    "n_atoms": lambda facts: len(facts.structure),
    "n_elements": lambda facts: len(facts.elements),
    "spacegroup_symbol": _of_symmetry("space_group_symbol"),
    "spacegroup_number": _of_symmetry("space_group_number"),
    "crystal_system": _of_symmetry("crystal_system"),
    **{f"lattice_{name}": _of_lattice(name) for name in ("a", "b", "c", "alpha", "beta", "gamma")},
    "volume_per_atom": lambda facts: facts.structure.volume / len(facts.structure),
    "density": lambda facts: float(facts.structure.density),
    "a_site": _of_perovskite(0),
    "b_site": _of_perovskite(1),
    "x_sites": lambda facts: facts.anions,
}
