"""The order of the DFT work: elements first, then all prototypes evenly, cheap crystals first."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from shards.embedded.generate.catalog import ELEMENT_PROTOTYPES

TOO_DEAR = 25.0  # estimated seconds on one core of a 2020s server
HYPOTHETICAL_PENALTY = 1.6
COMPOUNDS_BEFORE_ODD_ELEMENTS = 120

# Valence electrons of GPAW's default setups, for the estimate only.
_VALENCE_TEXT = """
    H 1 Li 3 Be 4 B 3 C 4 N 5 O 6 F 7 Ne 8 Na 7 Mg 10 Al 3 Si 4 P 5 S 6 Cl 7 Ar 8 K 9 Ca 10 Sc 11 Ti 12 V 13 Co 9
    Ni 10 Cu 11 Zn 12 Ga 13 Ge 14 As 5 Se 6 Br 7 Kr 8 Rb 9 Sr 10 Y 11 Zr 12 Nb 13 Mo 14 Ru 16 Rh 15 Pd 16 Ag 17 Cd 12
    In 13 Sn 14 Sb 5 Te 6 I 7 Xe 8 Cs 9 Ba 10 La 11 Hf 12 Ta 13 W 14 Re 15 Os 16 Ir 15 Pt 16 Au 17 Hg 12 Tl 13 Pb 14
    Bi 15
"""
_WORDS = _VALENCE_TEXT.split()
VALENCE_ELECTRONS = dict(zip(_WORDS[::2], map(int, _WORDS[1::2]), strict=True))


def estimated_seconds(crystal: dict[str, Any]) -> float:
    """Rough cost of one SCF: irreducible k-points times (a constant plus volume times bands)."""
    cell = np.array(crystal["cell"])
    volume = abs(np.linalg.det(cell))
    reciprocal = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell).T, axis=1)
    points = np.ceil(3.5 * reciprocal).prod()
    irreducible = points / _symmetries(crystal["spacegroup_number"]) * 1.5 + 3
    species = crystal["species"]
    bands = sum(VALENCE_ELECTRONS[s] for s in species) / 2 + 4 * len(species) + 4
    return float(irreducible * (0.03 + volume * bands * 4e-5))


def _symmetries(spacegroup: int) -> int:
    for first, operations in ((221, 48), (195, 40), (175, 22), (140, 14)):
        if spacegroup >= first:
            return operations
    return 6


def dft_order(crystals: dict[str, dict[str, Any]]) -> list[str]:
    """Order the relaxed crystals for the DFT stages.

    Known elements come first (they are the energy references), then the prototypes in turn: the next crystal is of
    the prototype with the lowest share done, its cheap and known members first. Hypothetical elemental phases follow
    the first 120 compounds. Compounds that are estimated to be too dear are left out.

    Parameters
    ----------
    crystals
        Id -> the fields of ``relaxed/<id>.json``.

    Returns
    -------
    list of str
    """
    cost = {name: estimated_seconds(c) for name, c in crystals.items()}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, crystal in crystals.items():
        kind = crystal["prototype"]
        groups["element" if kind in ELEMENT_PROTOTYPES else kind].append(name)
    for group in groups.values():
        group.sort(key=lambda n: cost[n] * (1 if crystals[n]["is_known"] else HYPOTHETICAL_PENALTY))
    elements = groups.pop("element", [])
    references = [n for n in elements if crystals[n]["is_known"]]
    odd = [n for n in elements if not crystals[n]["is_known"]]
    compounds = _interleave(dict(groups))
    head, tail = compounds[:COMPOUNDS_BEFORE_ODD_ELEMENTS], compounds[COMPOUNDS_BEFORE_ODD_ELEMENTS:]
    return references + [n for n in head + odd + tail if cost[n] < TOO_DEAR]


def _interleave(groups: dict[str, list[str]]) -> list[str]:
    total = {kind: len(names) for kind, names in groups.items()}
    taken = dict.fromkeys(groups, 0)
    out: list[str] = []
    while len(out) < sum(total.values()):
        open_groups = [kind for kind in groups if taken[kind] < total[kind]]
        kind = min(open_groups, key=lambda k: (taken[k] + 1) / (total[k] + 6))
        out.append(groups[kind][taken[kind]])
        taken[kind] += 1
    return out
