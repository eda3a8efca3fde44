"""The data sets that are shipped with the package, as source records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shards.sources.base import RawDos, Record

if TYPE_CHECKING:
    from shards.embedded import RawRecord


def embedded_records(name: str = "dft_crystals") -> Iterator[Record]:
    """Yield the records of a shipped data set, in its own order.

    Parameters
    ----------
    name : str
        Name of the set; `shards.embedded.load` knows them.
    """
    from shards.embedded import load

    for raw in load(name):
        yield embedded_record(raw)


def embedded_record(raw: RawRecord) -> Record:
    """Turn one shipped record into a source record.

    The energies of its density of states are already counted from the valence band maximum (the Fermi
    energy of a metal), and the states belong to all atoms of the cell.
    """
    from pymatgen.core import Structure

    structure = Structure(raw.lattice, list(raw.species), raw.frac_coords)
    dos = None
    if raw.dos is not None:
        energy, states = raw.dos
        dos = RawDos(energy_ev=energy, states_per_ev=states, atoms=len(structure))
    return Record(
        id=raw.id,
        structure=structure,
        dos=dos,
        charge_density=raw.charge_density,
        text=raw.text or None,
        labels=dict(raw.labels),
        tags={
            "formula": raw.formula,
            "chemical_system": structure.composition.chemical_system,
            "prototype": raw.prototype,
            **raw.tags,
        },
    )
