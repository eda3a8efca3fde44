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
PEROVSKITE_ATOMS = 5
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
    def perovskite(self) -> tuple[str, str, str] | None:
        """A, B and X of a cell of five atoms: X are the most electronegative three, B is the cation nearer to them."""
        if len(self.structure) != PEROVSKITE_ATOMS:
            return None
        species = [site.specie for site in self.structure]
        order = sorted(range(PEROVSKITE_ATOMS), key=lambda i: _electronegativity(species[i]))
        cations, anions = order[:2], order[2:]
        distance = self.structure.distance_matrix
        b, a = sorted(cations, key=lambda cation: float(np.mean(distance[cation, anions])))
        symbols = sorted({species[i].symbol for i in anions})
        return species[a].symbol, species[b].symbol, " and ".join(symbols)


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
    "x_sites": _of_perovskite(2),
}
