"""The candidate crystals: prototype, species, a starting cell. Needs ase, reads no database.

Whether a member is marked as known is the authors' own judgement from general chemistry (the compound is reported in
this structure type, at ambient or at high pressure or temperature); it was not looked up. A leading ``?`` marks a
hypothetical member that fills a gap of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms

ELEMENT_PROTOTYPES = frozenset({"bcc", "fcc", "hcp", "diamond", "elemental_other"})
NOBLE_GASES = frozenset({"Ne", "Ar", "Kr", "Xe"})


@dataclass(frozen=True)
class Candidate:
    """One crystal to compute; `frees_cell` when symmetry leaves the cell other freedom than its size."""

    id: str
    prototype: str
    atoms: Atoms
    frees_cell: bool
    is_known: bool


@dataclass(frozen=True)
class Prototype:
    """A structure type in units of its lattice constant.

    ``nearest`` is the distance of the closest pair (in lattice constants) and ``pair`` the two slots that form it: the
    sum of their covalent radii sets the starting size.
    """

    cell: NDArray[np.float64]
    sites: tuple[tuple[str, tuple[float, float, float]], ...]
    nearest: float
    pair: str
    frees_cell: bool = False


def _hexagonal(c_over_a: float) -> NDArray[np.float64]:
    return np.array([[1, 0, 0], [-0.5, 3**0.5 / 2, 0], [0, 0, c_over_a]])


_FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
_CUBIC = np.eye(3)
_O = (0.0, 0.0, 0.0)
_QUARTER = (0.25, 0.25, 0.25)
_CENTRE = (0.5, 0.5, 0.5)
_THREE_QUARTER = (0.75, 0.75, 0.75)
_FACES = ((0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5))
_EDGES = ((0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5))
_TETRAHEDRAL = 3**0.5 / 4


def _hex(z: float, *, other: bool = False) -> tuple[float, float, float]:
    return (2 / 3, 1 / 3, z) if other else (1 / 3, 2 / 3, z)


_FLUORITE = Prototype(_FCC, (("A", _O), ("B", _QUARTER), ("B", _THREE_QUARTER)), _TETRAHEDRAL, "AB")

PROTOTYPES = {
    "rocksalt": Prototype(_FCC, (("A", _O), ("B", _CENTRE)), 0.5, "AB"),
    "zincblende": Prototype(_FCC, (("A", _O), ("B", _QUARTER)), _TETRAHEDRAL, "AB"),
    "wurtzite": Prototype(
        _hexagonal(1.633),
        (("A", _hex(0)), ("A", _hex(0.5, other=True)), ("B", _hex(0.375)), ("B", _hex(0.875, other=True))),
        0.612,
        "AB",
        True,
    ),
    "CsCl": Prototype(_CUBIC, (("A", _O), ("B", _CENTRE)), 3**0.5 / 2, "AB"),
    "fluorite": _FLUORITE,
    "antifluorite": _FLUORITE,  # the anion is named first
    "perovskite": Prototype(_CUBIC, (("A", _O), ("B", _CENTRE), *(("C", f) for f in _FACES)), 0.5, "BC"),
    "ReO3": Prototype(_CUBIC, (("A", _O), *(("B", e) for e in _EDGES)), 0.5, "AB"),
    # B sits at the centre, bonded to both A and C: the anion of a Nowotny-Juza phase, the late metal of an
    # 18-electron phase
    "half_heusler": Prototype(_FCC, (("A", _O), ("B", _QUARTER), ("C", _CENTRE)), _TETRAHEDRAL, "AB"),
    "BiF3": Prototype(_FCC, (("A", _O), ("B", _QUARTER), ("B", _THREE_QUARTER), ("B", _CENTRE)), _TETRAHEDRAL, "AB"),
    "NiAs": Prototype(
        _hexagonal(1.45),
        (("A", _O), ("A", (0.0, 0.0, 0.5)), ("B", _hex(0.25)), ("B", _hex(0.75, other=True))),
        0.681,
        "AB",
        True,
    ),
    "L1_2": Prototype(_CUBIC, (("A", _O), *(("B", f) for f in _FACES)), 0.7071, "AB"),
    "L1_0": Prototype(np.diag([0.7071, 0.7071, 1.0]), (("A", _O), ("B", _CENTRE)), 0.7071, "AB", True),
    "AlB2": Prototype(_hexagonal(1.07), (("A", _O), ("B", _hex(0.5)), ("B", _hex(0.5, other=True))), 0.78, "AB", True),
    "WC": Prototype(_hexagonal(0.97), (("A", _O), ("B", _hex(0.5))), 0.755, "AB", True),
}

# Species of the slots A, B (, C), joined by '-'.
MEMBERS = {
    "rocksalt": """
        Li-F Li-Cl Li-Br Li-I Na-F Na-Cl Na-Br Na-I K-F K-Cl K-Br K-I Rb-F Rb-Cl Rb-Br Rb-I Cs-F Cs-Cl Cs-Br
        Cs-I Mg-O Mg-S Mg-Se Mg-Te Ca-O Ca-S Ca-Se Ca-Te Sr-O Sr-S Sr-Se Sr-Te Ba-O Ba-S Ba-Se Ba-Te Li-H
        Na-H K-H Rb-H Cs-H Ag-F Ag-Cl Ag-Br Sc-N Y-N La-N Ti-N Zr-N Hf-N V-N Nb-N Ta-N Ti-C Zr-C Hf-C V-C
        Nb-C Ta-C Pb-S Pb-Se Pb-Te Sn-Te ?Sn-S Sn-Se ?Ge-Te Cd-O ?Zn-O ?Be-O Y-As Y-P Sc-P Sc-As Y-Sb La-P
        La-As La-Sb ?Al-N ?Cu-Cl Sc-Sb Y-S Zr-S ?In-Sb ?Tl-Cl
    """,
    "zincblende": """
        B-N B-P B-As Al-N Al-P Al-As Ga-N Ga-P Ga-As In-N In-P In-As Al-Sb Ga-Sb In-Sb ?Be-O Be-S Be-Se
        Be-Te Zn-O Zn-S Zn-Se Zn-Te Cd-S Cd-Se Cd-Te ?Mg-S ?Mg-Se ?Mg-Te Cu-Cl Cu-Br Cu-I Ag-I Si-C ?Ge-C
        ?Sn-C ?Si-Ge ?Si-Sn ?Mg-O ?B-Sb ?Cu-F ?Tl-P ?Ge-Sn ?Li-F ?Na-Cl
    """,
    "wurtzite": """
        Al-N Ga-N In-N ?B-N Be-O Zn-O Zn-S Cd-S Cd-Se ?Zn-Se Mg-Te Si-C Ag-I ?Al-P ?Ga-As ?Be-S
    """,
    "CsCl": """
        Cs-Cl Cs-Br Cs-I Tl-Cl Tl-Br ?Tl-I ?Rb-Cl ?K-Cl ?Na-Cl ?Ca-O Al-Ni Cu-Zn Ag-Mg Au-Mg Ag-Zn Au-Zn
        Be-Cu Li-Tl Li-Au ?Li-Ag Ca-Tl Sr-Tl Sc-Cu Sc-Ag Sc-Au Y-Cu Y-Ag Y-Au Y-Zn Sc-Zn Mg-Sc Mg-Y Mg-La
        La-Zn La-Ag La-Cd Ti-Ru Ti-Os Zr-Ru Hf-Ru Zr-Os Sc-Rh Sc-Pd Sc-Ru Y-Rh Y-Ir Al-Rh Al-Ir Al-Ru Ga-Rh
        Ga-Ru Ca-Cd Sr-Cd Ba-Cd Ba-Zn Be-Pd Be-Rh Mg-Rh Mg-Pd Cd-Ag Cd-Au ?Al-Ti ?Al-Sc Ti-Au Ca-Hg
    """,
    "fluorite": """
        Ca-F Sr-F Ba-F Cd-F Pb-F Sr-Cl Ba-Cl Zr-O Hf-O ?Mg-F ?Ca-Cl ?Zn-F ?Be-F Sc-H Y-H Ti-H Zr-H La-H
        ?Ti-O ?Sn-O ?Si-O ?Pb-O
    """,
    "antifluorite": """
        O-Li S-Li Se-Li Te-Li O-Na S-Na Se-Na Te-Na O-K S-K Se-K Te-K O-Rb S-Rb Se-Rb Te-Rb C-Be Si-Mg Ge-Mg
        Sn-Mg Pb-Mg Au-Al Au-Ga Au-In Pt-Al Pt-Ga Ir-Sn ?Si-Ca ?Si-Be P-Rh
    """,
    "perovskite": """
        Sr-Ti-O Ba-Ti-O Ca-Ti-O Pb-Ti-O Sr-Zr-O Ba-Zr-O ?Ca-Zr-O Sr-Hf-O Ba-Hf-O K-Nb-O Na-Nb-O K-Ta-O
        Na-Ta-O Ba-Sn-O Sr-Sn-O La-Al-O ?La-Ga-O ?Y-Al-O ?Mg-Si-O ?Ca-Si-O ?Sr-Ge-O K-Mg-F Na-Mg-F Rb-Mg-F
        K-Zn-F ?K-Ca-F Rb-Ca-F Cs-Ca-F Ba-Li-F K-Cd-F Rb-Cd-F Cs-Cd-F ?Cs-Pb-F ?Sr-Li-F Cs-Pb-Cl Cs-Pb-Br
        Cs-Pb-I Cs-Sn-Cl Cs-Sn-Br Cs-Sn-I Cs-Ge-Cl Cs-Ge-Br Cs-Ge-I ?Rb-Pb-I ?Rb-Pb-Br ?Rb-Sn-I Cs-Ca-Cl
        Cs-Cd-Cl ?Cs-Mg-Cl ?K-Mg-Cl ?Cs-Sr-Br As-N-Mg Sb-N-Mg P-N-Ca As-N-Ca Sb-N-Ca Bi-N-Ca Sn-O-Ca Pb-O-Ca
        Ge-O-Ca Sn-O-Sr Pb-O-Sr Si-O-Ca Al-C-Ti Al-C-Sc In-C-Sc Al-C-Y In-N-Ti Al-N-Ti
    """,
    "ReO3": """
        Sc-F ?Al-F ?Y-F W-O Re-O N-Cu ?Mo-O ?N-Ag ?Ga-F ?In-F
    """,
    "half_heusler": """
        Li-N-Mg Li-P-Mg Li-As-Mg Li-N-Zn Li-P-Zn Li-As-Zn Li-P-Cd Li-As-Cd ?Li-N-Ca ?Li-Sb-Mg Li-Sb-Zn
        ?Na-P-Zn ?Na-As-Mg Li-Si-Al ?Li-Ge-Al ?Li-Si-Ga ?Na-Si-Al ?Li-Si-B ?Li-Ge-Ga ?K-P-Mg ?Cu-S-Li
        ?Na-S-Cu ?Cu-Se-Li Sn-Ni-Ti Sn-Ni-Zr Sn-Ni-Hf Sb-Co-Ti Sb-Co-Zr Sb-Co-Hf Sn-Co-Nb Sb-Pt-Sc Sb-Pt-Y
        Bi-Pt-Y Sb-Ni-Sc Sb-Ni-Y Sb-Pd-Sc Sb-Pt-La Bi-Pt-Sc Sb-Rh-Ti Sb-Ir-Zr ?Sb-Ru-V Sn-Pt-Zr Sn-Pt-Ti
    """,
    "BiF3": """
        Sb-Li Bi-Li ?P-Li ?As-Li ?Bi-Na ?Sb-Na K-Cs ?Sb-K
    """,
    "NiAs": """
        Ti-S Ti-Se Pd-Te Pd-Sb Pt-Sn Pt-Sb Pt-Bi Au-Sn Rh-Te ?Zr-S ?Mg-O ?Sc-N ?Zn-O ?Be-S
    """,
    "L1_2": """
        Sc-Al ?Y-Al ?Ti-Al ?Zr-Al Li-Al Au-Cu Cu-Au Sn-Pt Sn-Pd Pb-Pd Ca-Pb Ca-Sn Ca-Tl La-Sn La-Pb Y-In
        La-In Al-Zr In-Zr Y-Pd Sc-Pd Sc-Pt Ti-Rh Ti-Ir Al-Pt Ga-Pt In-Pt In-Pd Sc-Ga Sr-Pb Sc-In ?Mg-Ca
        ?Li-Mg ?Mg-Al ?Al-Mg ?Zn-Cu ?Ag-Mg Y-Tl Zn-Au Cd-Au ?Na-K
    """,
    "L1_0": """
        Ti-Al Cu-Au Pd-Zn Pd-Cd In-Mg Pt-Zn ?Ti-Ag ?Zr-Al
    """,
    "AlB2": """
        Mg-B Al-B Ti-B Zr-B Hf-B Sc-B Y-B V-B Nb-B Ta-B Ca-Ga Sr-Ga Ba-Ga La-Ga
    """,
    "WC": """
        W-C ?Mo-C ?Ta-N ?Nb-N Mo-P W-N Nb-S ?Zr-Te ?Ti-C
    """,
}

ELEMENTS = {
    "bcc": "Li Na K Rb Cs Ba V Nb Mo Ta W",
    "fcc": "Ca Sr Al Cu Ag Au Pd Pt Rh Ir Pb Ne Ar Kr Xe",
    "hcp": "Be Mg Sc Y Ti Zr Hf Zn Cd Ru Os Re Tl",
    "diamond": "C Si Ge Sn",
}
# Structures that are not the ground state; '?' as above.
OTHER_PHASES = """
    ?Al-bcc ?Cu-bcc ?Mg-bcc Li-fcc ?Na-fcc Ti-bcc ?Ti-fcc Zr-bcc ?Mg-fcc ?Nb-fcc ?W-fcc ?Ag-bcc ?K-fcc Ca-bcc
    ?Si-fcc ?Ga-fcc ?In-fcc ?Tl-fcc La-fcc ?Al-diamond
"""
LOW_SYMMETRY = "As Sb Bi Se Te In Ga P La"  # those of ase's dcdft collection start from its geometry
_NOBLE_LATTICE_A = {"Ne": 4.5, "Ar": 5.5, "Kr": 6.0, "Xe": 6.5}
_LATTICE_PER_DISTANCE = {"bcc": 2 / 3**0.5, "fcc": 2**0.5, "diamond": 4 / 3**0.5}


def candidates() -> list[Candidate]:
    """All 549 candidates, elements first; an id that occurs twice is kept once (the first).

    Raises
    ------
    DataError
        Without ase or spglib.
    """
    from shards.embedded.generate.packages import require

    require("ase", "spglib")
    unique: dict[str, Candidate] = {}
    for candidate in (*_elements(), *_compounds()):
        unique.setdefault(candidate.id, candidate)
    return list(unique.values())


def _radius(symbol: str) -> float:
    from ase.data import atomic_numbers, covalent_radii

    return float(covalent_radii[atomic_numbers[symbol]])


def _parse(token: str) -> tuple[list[str], bool]:
    return token.lstrip("?").split("-"), not token.startswith("?")


def _elements() -> Iterator[Candidate]:
    from ase.build import bulk

    for symbol in ELEMENTS["bcc"].split():
        a = 2 * _radius(symbol) * 1.02 * _LATTICE_PER_DISTANCE["bcc"]
        yield Candidate(f"{symbol}_bcc", "bcc", bulk(symbol, "bcc", a=a), False, True)
    for symbol in ELEMENTS["fcc"].split():
        a = _NOBLE_LATTICE_A.get(symbol, 2 * _radius(symbol) * 1.03 * _LATTICE_PER_DISTANCE["fcc"])
        yield Candidate(f"{symbol}_fcc", "fcc", bulk(symbol, "fcc", a=a), False, True)
    for symbol in ELEMENTS["hcp"].split():
        a = 2 * _radius(symbol) * 1.03
        c = a * (1.86 if symbol in ("Zn", "Cd") else 1.6)
        yield Candidate(f"{symbol}_hcp", "hcp", bulk(symbol, "hcp", a=a, c=c), True, True)
    for symbol in ELEMENTS["diamond"].split():
        a = 2 * _radius(symbol) * _LATTICE_PER_DISTANCE["diamond"]
        yield Candidate(f"{symbol}_diamond", "diamond", bulk(symbol, "diamond", a=a), False, True)
    for token in OTHER_PHASES.split():
        (symbol, phase), known = _parse(token)
        a = 2 * _radius(symbol) * 1.03 * _LATTICE_PER_DISTANCE[phase]
        yield Candidate(f"{symbol}_{phase}", phase, bulk(symbol, phase, a=a), False, known)
    yield from _low_symmetry_elements()


def _low_symmetry_elements() -> Iterator[Candidate]:
    import spglib
    from ase import Atoms
    from ase.collections import dcdft

    for symbol in LOW_SYMMETRY.split():
        if symbol not in dcdft.names:
            continue
        atoms: Any = dcdft[symbol]
        found: Any = spglib.find_primitive((atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers), symprec=1e-3)
        cell, frac, numbers = found
        primitive = Atoms(numbers, scaled_positions=frac, cell=cell, pbc=True)
        yield Candidate(f"{symbol}_ground", "elemental_other", primitive, True, True)


def _compounds() -> Iterator[Candidate]:
    from ase import Atoms

    for name, members in MEMBERS.items():
        prototype = PROTOTYPES[name]
        for token in members.split():
            species, known = _parse(token)
            slot = dict(zip("ABC", species, strict=False))
            a = sum(_radius(slot[s]) for s in prototype.pair) / prototype.nearest
            atoms = Atoms(
                [slot[s] for s, _ in prototype.sites],
                scaled_positions=[frac for _, frac in prototype.sites],
                cell=prototype.cell * a,
                pbc=True,
            )
            formula = atoms.get_chemical_formula("metal", empirical=True)
            yield Candidate(f"{formula}_{name}", name, atoms, prototype.frees_cell, known)
