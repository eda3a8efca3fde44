"""A source of your own: it lists its records cheaply, and reads them one by one, in whichever process.

python docs/examples/add_source.py FOLDER
"""

import sys
from pathlib import Path
from typing import Literal

from pymatgen.core import Lattice, Structure

from shards.build_recipe import BuildRecipe, run_build
from shards.errors import DataError
from shards.sources import SOURCES, Item, Source
from shards.sources.structures import structure_record


@SOURCES.register("rock_salts")
class RockSalts(Source):
    """Rock salts from a text file with a line for each: cation, anion, lattice constant in Angstrom."""

    kind: Literal["rock_salts"] = "rock_salts"
    path: Path

    def items(self):
        """List the lines; a line that changes is read anew by a build that goes on."""
        for number, line in enumerate(self.path.read_text().splitlines()):
            yield Item(id=f"salt-{number}", ref=line, stamp=line)

    def read(self, item):
        """Make one record; what cannot be used is quarantined with the reason."""
        cation, anion, length = item.ref.split()
        if not 3.0 < float(length) < 9.0:
            raise DataError(f"no rock salt has a lattice constant of {length} A", where=item.id)
        cell = Lattice.cubic(float(length))
        structure = Structure.from_spacegroup("Fm-3m", cell, [cation, anion], [[0] * 3, [0.5] * 3])
        return structure_record(structure, item.id)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    lines = ["Na Cl 5.64", "Li F 4.03", "K Br 6.60", "Mg O 4.21", "Na F 64.0"]
    (folder / "salts.txt").write_text("\n".join(lines))
    recipe = BuildRecipe(
        name="salts",
        source={"kind": "rock_salts", "path": str(folder / "salts.txt")},
        modalities={"crystal": {"step": "crystal"}},
        max_quarantined=0.5,
    )
    manifest = run_build(recipe, folder / "shards", workers=2)
    print(manifest.samples, "samples, quarantined:", manifest.quarantined)
