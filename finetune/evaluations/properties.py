"""What a map or a probe is asked about: crystal system, metallicity, any tag, any label."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

import numpy as np

from shards.errors import DataError
from shards.schema import Sample

CRYSTAL_SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
# the last space group of each crystal system (International Tables for Crystallography, Volume A)
LAST_GROUP = (2, 15, 74, 142, 167, 194, 230)
# eV: below it a band gap is none (MultiMat)
METAL_GAP = 1e-9
GAP, IS_METAL = "band_gap_ev", "is_metal"
DERIVED = ("crystal_system", "metal")


def crystal_system(number: int) -> str:
    """Return the crystal system of a space group, 1 to 230."""
    if not 1 <= number <= LAST_GROUP[-1]:
        raise DataError(f"there is no space group {number}", why="they are numbered from 1 to 230")
    return CRYSTAL_SYSTEMS[bisect_left(LAST_GROUP, number)]


@cache
def _numbers() -> dict[str, int]:
    """Space group numbers by their short international symbol; ``P6_3/mmc`` and ``P6(3)/mmc`` as spglib writes them."""
    import spglib

    # one entry a Hall setting
    types = [spglib.get_spacegroup_type(hall) for hall in range(1, 531)]
    return {found.international_short: found.number for found in types if found is not None}


def _crystal_system(sample: Sample) -> str | None:
    tags = sample.tags
    if "crystal_system" in tags:
        return tags["crystal_system"].lower()
    for tag in ("spacegroup_number", "spacegroup"):
        text = tags.get(tag, "").replace(" ", "")
        number = int(text) if text.isdigit() else _numbers().get(text)
        if number is not None:
            return crystal_system(number)
    return None


def _metal(sample: Sample) -> str | None:
    if IS_METAL in sample.labels:
        return "metal" if sample.labels[IS_METAL] > 0.5 else "insulator"
    if GAP in sample.labels:
        return "metal" if sample.labels[GAP] < METAL_GAP else "insulator"
    return None


def classes_of(samples: Sequence[Sample], name: str) -> list[str | None]:
    """Return the class of each sample, None where it is unknown.

    Parameters
    ----------
    samples : sequence of Sample
        N samples.
    name : str
        ``crystal_system`` (from the tag of that name, or from ``spacegroup``), ``metal`` (from the label ``is_metal``,
        or a band gap of 0), or any tag.
    """
    look = {"crystal_system": _crystal_system, "metal": _metal}.get(name, lambda sample: sample.tags.get(name))
    return [look(sample) for sample in samples]


def values_of(samples: Sequence[Sample], label: str) -> np.ndarray:
    """Return a label (N,) of each sample, NaN where it is unknown."""
    return np.array([sample.labels.get(label, np.nan) for sample in samples], dtype=np.float64)


def known_of(samples: Sequence[Sample], name: str) -> tuple[np.ndarray, list[str]]:
    """Return the positions of the samples of which a class is known, and the classes."""
    found = classes_of(samples, name)
    known = np.array([i for i, value in enumerate(found) if value is not None], dtype=np.int64)
    return known, [value for value in found if value is not None]
