"""The source contract: what an adapter lists and yields before any feature is computed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.plugins import Registry
from shards.schema import Strict

if TYPE_CHECKING:
    from pymatgen.core import Structure


RHO_V = "charge_density_rho_v"


@dataclass(frozen=True, kw_only=True)
class RawDos:
    """A density of states as its source gives it.

    Attributes
    ----------
    energy_ev : ndarray
        (n,) ascending energies in eV, on any absolute scale.
    states_per_ev : ndarray
        (n,) states per eV for ``atoms`` atoms, both spins.
    zero_ev : float
        Energy that becomes 0 eV: the Fermi energy of a metal, the valence band maximum of an insulator.
    atoms : int
        Number of atoms that the states belong to (1 where they are given per atom).
    absolute : bool
        False where the states are known up to a factor only (one spin channel of an unknown calculation,
        a cell of unknown size): the shape is right, no number of states can be had from it.
    """

    energy_ev: np.ndarray
    states_per_ev: np.ndarray
    zero_ev: float = 0.0
    atoms: int = 1
    absolute: bool = True


@dataclass(frozen=True, kw_only=True)
class Record:
    """One source record; everything but the id may be missing.

    Attributes
    ----------
    id : str
        Any string; unique in the source.
    structure : pymatgen Structure, optional
        The crystal.
    dos : RawDos, optional
        Electronic density of states.
    charge_density : ndarray, optional
        (n1, n2, n3) electrons per cubic Angstrom; index i is fractional coordinate i / n.
    text : str, optional
        A description.
    smiles : str, optional
        A molecule.
    images : tuple of ndarray
        Pictures of the sample, each uint8 (height, width) or (height, width, channels).
    columns : dict of str to float or str
        Process and other table columns: numbers (unit in the name) and categories; unknown ones absent.
    arrays : dict of str to ndarray
        Whatever else the source holds, by name: a spectrum, an embedding that was computed elsewhere, a
        charge density times a cell volume that the source does not tell (`RHO_V`).
    labels : dict of str to float or array
        Unit in the name; unknown ones absent. An array (a tensor) becomes one label a component; see `shards.labels`.
    tags : dict of str to str
        ``formula``, ``chemical_system``, ``prototype``, ...
    group : str
        Records of one physical sample share it; empty = the id.
    """

    id: str
    structure: Structure | None = None
    dos: RawDos | None = None
    charge_density: np.ndarray | None = None
    text: str | None = None
    smiles: str | None = None
    images: tuple[np.ndarray, ...] = ()
    columns: dict[str, float | str] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Where one record of a source lies: small, cheap to list, and sent to whichever process reads it.

    Attributes
    ----------
    id : str
        The record's id, unique in the source.
    ref : JSON value
        What `Source.read` needs to find it: a path, a row number, a list of them.
    stamp : str
        Changes when the record's bytes change (size and time of a file), so that a resumed build reads
        it anew.
    """

    id: str
    ref: Any = None
    stamp: str = ""


class Source(Strict):
    """Where records come from; its fields are its parameters and go into the manifest.

    Registered by ``@SOURCES.register(kind)``, or found by the entry-point group ``matloom.sources``. A
    source is sent to other processes, so it holds parameters only; what is costly to open is opened
    by a cached function.
    """

    kind: str

    @abstractmethod
    def items(self) -> Iterable[Item]:
        """List the records, always in the same order, without reading them.

        Raises
        ------
        DataError
            Where the source as a whole is missing or unreadable.
        """

    @abstractmethod
    def read(self, item: Item) -> Record:
        """Read one record, whose id is the item's.

        Raises
        ------
        DataError
            Where this record cannot be used: it is quarantined with the reason, and the build goes on.
        """


SOURCES: Registry[type[Source]] = Registry(
    "source",
    {
        name: f"shards.sources.{name}"
        for name in ("embedded", "join", "materials_project", "multimat", "structures", "table", "vasp", "webdataset")
    },
)
