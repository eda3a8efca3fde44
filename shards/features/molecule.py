"""A molecule as the graph of its bonds."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from shards.features.base import FEATURES, Feature
from shards.molecules import ATOM_FEATURES, BOND_FEATURES, check_size, molecule_arrays, parse_smiles
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record


@FEATURES.register("molecule")
class MoleculeFeature(Feature):
    """SMILES -> atoms and bonds with their features; hydrogens are counted at their atoms.

    Attributes
    ----------
    largest_fragment : bool
        Leave out counter-ions and solvents. By default all fragments stay, unconnected.
    max_atoms : int
        Molecules with more heavy atoms are refused.
    """

    kind: ClassVar[Kind] = "graph"
    step: Literal["molecule"] = "molecule"
    largest_fragment: bool = False
    max_atoms: int = Field(512, ge=1)

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a molecular graph."""
        fields = {
            "atomic_numbers": FieldSpec(dtype="uint8", shape=("atoms",)),
            "masses_u": FieldSpec(dtype="float32", shape=("atoms",), unit="u"),
            "atom_features": FieldSpec(dtype="uint8", shape=("atoms", ATOM_FEATURES)),
            "edge_index": FieldSpec(dtype="int32", shape=(2, "edges"), index_of="atoms"),
            "bond_features": FieldSpec(dtype="uint8", shape=("edges", BOND_FEATURES)),
        }
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return the arrays of `shards.molecules.molecule_arrays`, or None without a SMILES."""
        if record.smiles is None:
            return None
        mol = parse_smiles(record.smiles, largest_fragment=self.largest_fragment)
        check_size(mol.GetNumAtoms(), self.max_atoms, where=record.id)
        return molecule_arrays(mol)
