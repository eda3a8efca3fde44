"""Extended-connectivity fingerprints."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from shards.features.base import FEATURES, Feature
from shards.molecules import parse_smiles, rdkit_chem
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record


@FEATURES.register("fingerprint")
class FingerprintFeature(Feature):
    """SMILES -> Morgan fingerprint: which environments of atoms up to a radius there are, hashed (ECFP4 by default).

    Rogers and Hahn, J. Chem. Inf. Model. 50 (2010) 742.

    Attributes
    ----------
    radius : int
        Bonds from the central atom to the rim of the largest environment; ECFP names twice that.
    bits : int
        Length of the vector.
    counts : bool
        How often each environment occurs (255 at most) instead of whether it does.
    chirality : bool
        Tell stereo-isomers apart.
    largest_fragment : bool
        Leave out counter-ions and solvents.
    """

    kind: ClassVar[Kind] = "vector"
    step: Literal["fingerprint"] = "fingerprint"
    radius: int = Field(2, ge=0, le=8)
    bits: int = Field(2048, ge=8, le=65_536)
    counts: bool = False
    chirality: bool = False
    largest_fragment: bool = False

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a vector of small integers."""
        fields = {"values": FieldSpec(dtype="uint8", shape=(self.bits,))}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``values`` (bits,) uint8, or None without a SMILES."""
        if record.smiles is None:
            return None
        mol = parse_smiles(record.smiles, largest_fragment=self.largest_fragment)
        generator = _generator(self.radius, self.bits, self.chirality)
        if self.counts:
            return {"values": np.minimum(generator.GetCountFingerprintAsNumPy(mol), 255).astype(np.uint8)}
        return {"values": generator.GetFingerprintAsNumPy(mol).astype(np.uint8)}


@lru_cache(maxsize=8)
def _generator(radius: int, bits: int, chirality: bool) -> Any:
    rdkit_chem()
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    return GetMorganGenerator(radius=radius, fpSize=bits, includeChirality=chirality)
