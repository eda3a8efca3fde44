"""The crystal as a periodic graph with infinite lattice sums."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from shards.crystals import crystal_arrays
from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record


@FEATURES.register("crystal")
class CrystalFeature(Feature):
    """Structure -> primitive cell -> graph of all neighbours within a cut-off.

    The graph (elements, distances, potentials) does not change with rotation, translation, the order
    of atoms or the choice of cell.

    Attributes
    ----------
    cutoff_a : float
        Radius of the edges, Angstrom.
    primitive : bool
        Reduce to the primitive cell first.
    potentials : bool
        Add PotNet's infinite sums for all ordered pairs of atoms (see `shards.potentials`).
    symprec_a : float
        Tolerance of the primitive reduction, Angstrom.
    max_atoms : int
        Structures with more atoms are refused.
    """

    kind: ClassVar[Kind] = "graph"
    step: Literal["crystal"] = "crystal"
    cutoff_a: float = Field(5.0, gt=0.0, le=20.0)
    primitive: bool = True
    potentials: bool = True
    symprec_a: float = Field(0.01, gt=0.0, le=1.0)
    max_atoms: int = Field(500, ge=1)

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a crystal graph."""
        fields = {
            "atomic_numbers": FieldSpec(dtype="uint8", shape=("atoms",)),
            "frac_coords": FieldSpec(dtype="float32", shape=("atoms", 3)),
            "lattice": FieldSpec(dtype="float32", shape=(3, 3), unit="A"),
            "edge_index": FieldSpec(dtype="int32", shape=(2, "edges"), index_of="atoms"),
            "edge_vector": FieldSpec(dtype="float32", shape=("edges", 3), unit="A"),
        }
        if self.potentials:
            fields["pair_index"] = FieldSpec(dtype="int32", shape=(2, "pairs"), index_of="atoms")
            fields["potentials"] = FieldSpec(dtype="float32", shape=("pairs", 3), unit="1/A, 1/A^6, 1")
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return the arrays of `shards.crystals.crystal_arrays`, or None without a structure."""
        if record.structure is None:
            return None
        if len(record.structure) > self.max_atoms:
            raise DataError(
                f"the structure has {len(record.structure)} atoms, the crystal feature takes {self.max_atoms}",
                where=record.id,
                do="give a smaller cell, or raise the feature's max_atoms",
            )
        return crystal_arrays(
            record.structure,
            cutoff_a=self.cutoff_a,
            primitive=self.primitive,
            potentials=self.potentials,
            symprec_a=self.symprec_a,
            where=record.id,
        )
