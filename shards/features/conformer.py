"""A molecule in three dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.molecules import check_size, parse_smiles, rdkit_chem
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record

if TYPE_CHECKING:
    from rdkit.Chem import Mol


@FEATURES.register("conformer")
class ConformerFeature(Feature):
    """SMILES -> one conformer: ETKDGv3, then MMFF94; the same SMILES gives the same atoms at the same places.

    Riniker and Landrum, J. Chem. Inf. Model. 55 (2015) 2562; Wang et al., ibid. 60 (2020) 2044. Where the SMILES leaves
    the configuration of a centre open, the seed chooses one. The conformer is a low one, not the lowest.

    Attributes
    ----------
    cutoff_a : float
        Every pair of atoms within this distance is an edge, Angstrom.
    hydrogens : bool
        Hydrogens are atoms of the graph; they always take part in the embedding.
    optimise : str
        ``mmff``; ``uff``, coarser, with parameters for more elements (boron); ``none`` for the geometry as embedded.
    largest_fragment : bool
        Leave out counter-ions and solvents. Otherwise several fragments count as a failure: where they lie
        relative to each other is not known.
    failure : str
        What becomes of a record without a conformer: ``refuse`` it (quarantine), or leave the modality ``absent``.
    seed : int
        Seed of the embedding.
    attempts : int
        Embeddings that are tried, from random coordinates after the first.
    max_iterations : int
        Steps of the optimisation; one that has not converged by then counts as a failure.
    max_seconds : int
        Limit of an embedding, far above what the largest molecule needs: reached in pathological cases alone.
    max_atoms : int
        Molecules with more atoms, hydrogens included, are refused, whatever ``failure`` says.
    """

    kind: ClassVar[Kind] = "graph"
    step: Literal["conformer"] = "conformer"
    cutoff_a: float = Field(5.0, gt=1.0, le=20.0)
    hydrogens: bool = True
    optimise: Literal["mmff", "uff", "none"] = "mmff"
    largest_fragment: bool = False
    failure: Literal["refuse", "absent"] = "refuse"
    seed: int = Field(0, ge=0, lt=2**31)
    attempts: int = Field(10, ge=1)
    max_iterations: int = Field(5000, ge=1)
    max_seconds: int = Field(60, ge=1)
    max_atoms: int = Field(256, ge=1)

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a graph in space; its fields are named like those of a crystal."""
        fields = {
            "atomic_numbers": FieldSpec(dtype="uint8", shape=("atoms",)),
            "positions": FieldSpec(dtype="float32", shape=("atoms", 3), unit="A"),
            "edge_index": FieldSpec(dtype="int32", shape=(2, "edges"), index_of="atoms"),
            "edge_vector": FieldSpec(dtype="float32", shape=("edges", 3), unit="A"),
        }
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return the arrays of a conformer, or None without a SMILES (or, if so chosen, without a conformer).

        Returns
        -------
        dict
            n atoms, E edges: ``atomic_numbers`` (n,) uint8; ``positions`` (n, 3) float32, A, around their mean;
            ``edge_index`` (2, E) int32, row 0 the neighbour, row 1 the centre (ascending); ``edge_vector``
            (E, 3) float32, A, neighbour minus centre.
        """
        if record.smiles is None:
            return None
        mol = rdkit_chem().AddHs(parse_smiles(record.smiles, largest_fragment=self.largest_fragment))
        check_size(mol.GetNumAtoms(), self.max_atoms, where=record.id)
        reason = self._place(mol)
        if reason and self.failure == "absent":
            return None
        if reason:
            raise DataError(
                f"no conformer of '{record.smiles}'",
                where=record.id,
                why=reason,
                do='leave the record out, or set failure = "absent" for the conformer step',
            )
        numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.uint8)
        positions = np.array(mol.GetConformer().GetPositions(), dtype=np.float64)
        if not self.hydrogens and (numbers != 1).any():
            numbers, positions = numbers[numbers != 1], positions[numbers != 1]
        return space_graph(numbers, positions, self.cutoff_a)

    def _place(self, mol: Mol) -> str | None:
        """Give the molecule a conformer, or say why it gets none."""
        Chem = rdkit_chem()
        from rdkit import rdBase

        if len(Chem.GetMolFrags(mol)) > 1:
            return "it has several fragments; largest_fragment = true keeps the largest one"
        if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
            return "it has a place holder (*)"
        with rdBase.BlockLogs():
            if not self._embedded(mol):
                return f"ETKDG found none in {self.attempts} attempts"
            return None if self.optimise == "none" else self._relaxed(mol)

    def _relaxed(self, mol: Mol) -> str | None:
        """Optimise the conformer by a force field, or say why that fails."""
        from rdkit.Chem import rdForceFieldHelpers as Fields

        forces: dict[str, tuple[Any, Any]] = {
            "mmff": (Fields.MMFFHasAllMoleculeParams, Fields.MMFFOptimizeMolecule),
            "uff": (Fields.UFFHasAllMoleculeParams, Fields.UFFOptimizeMolecule),
        }
        has_parameters, optimise = forces[self.optimise]
        if not has_parameters(mol):
            return f"{self.optimise} lacks parameters for it: optimise = 'uff' knows most elements, 'none' needs none"
        if optimise(mol, maxIters=self.max_iterations):
            return f"{self.optimise} has not converged in {self.max_iterations} steps"
        return None

    def _embedded(self, mol: Mol) -> bool:
        from rdkit.Chem.rdDistGeom import EmbedMolecule, ETKDGv3

        for attempt in range(self.attempts):
            parameters: Any = ETKDGv3()
            parameters.randomSeed = self.seed + attempt
            parameters.maxIterations = 10
            parameters.timeout = self.max_seconds
            parameters.useRandomCoords = attempt > 0
            if EmbedMolecule(mol, parameters) >= 0:
                return True
        return False


def space_graph(numbers: np.ndarray, positions: np.ndarray, cutoff_a: float) -> dict[str, np.ndarray]:
    """Return atoms (n,), their positions (n, 3) in Angstrom and every pair within ``cutoff_a`` as a graph."""
    positions = positions - positions.mean(axis=0)
    vectors = positions[None, :] - positions[:, None]  # (centre, neighbour, 3)
    near = np.linalg.norm(vectors, axis=-1) <= cutoff_a
    np.fill_diagonal(near, False)
    centre, neighbour = np.nonzero(near)
    return {
        "atomic_numbers": numbers,
        "positions": positions.astype(np.float32),
        "edge_index": np.stack([neighbour, centre]).astype(np.int32),
        "edge_vector": vectors[centre, neighbour].astype(np.float32),
    }
