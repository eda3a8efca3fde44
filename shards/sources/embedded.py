"""The data sets that are shipped with the package, as source records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from shards.errors import DataError
from shards.sources.base import SOURCES, Item, RawDos, Record, Source

if TYPE_CHECKING:
    from shards.embedded import RawRecord


@SOURCES.register("embedded")
class EmbeddedSource(Source):
    """A data set that is shipped with the package.

    Attributes
    ----------
    name : str
        Name of the set; `shards.embedded.names` lists them.
    """

    kind: Literal["embedded"] = "embedded"
    name: str = "dft_crystals"

    def items(self) -> Iterable[Item]:
        """List the records in the set's own order."""
        return [Item(id=record_id) for record_id in _records(self.name)]

    def read(self, item: Item) -> Record:
        """Return one record."""
        raw = _records(self.name).get(item.id)
        if raw is None:
            raise DataError(f"there is no record '{item.id}'", where=f"embedded:{self.name}")
        return embedded_record(raw)


@lru_cache(maxsize=1)
def _records(name: str) -> dict[str, RawRecord]:
    from shards.embedded import load

    return {raw.id: raw for raw in load(name)}


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
