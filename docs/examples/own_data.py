"""Your own materials as shards: structures, some with a text, some with a label, none complete.

python docs/examples/own_data.py FOLDER
"""

import sys
from pathlib import Path

from pymatgen.core import Lattice, Structure

from shards.build import SplitPlan, build
from shards.features import feature
from shards.sources.base import Record
from shards.sources.structures import structure_record


def records():
    """Yield one record a material; leave out what you do not have."""
    for i, (cation, anion) in enumerate((c, a) for c in ("Li", "Na", "K", "Rb") for a in ("F", "Cl", "Br")):
        structure = Structure.from_spacegroup(
            "Fm-3m", Lattice.cubic(4 + 0.2 * i), [cation, anion], [[0] * 3, [0.5] * 3]
        )
        tags = structure_record(structure, "").tags  # formula and chemical system
        yield Record(
            id=f"{cation}{anion}",
            structure=structure,
            text=f"{cation}{anion} is a rock salt." if i % 3 else None,
            labels={"band_gap_ev": 5.0 + 0.1 * i} if i % 2 else {},  # the unit stands in the name
            tags=tags,
        )


if __name__ == "__main__":
    steps = {name: feature({"step": name}) for name in ("crystal", "xrd", "text")}
    splits = {"chemical_system": SplitPlan(by="chemical_system")}
    manifest = build(records(), steps, Path(sys.argv[1]) / "shards", name="halides", splits=splits)
    print(manifest.samples, "samples,", manifest.coverage)
