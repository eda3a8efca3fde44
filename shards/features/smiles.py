"""SMILES as token sequences over a closed vocabulary that no data set decides."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.molecules import canonical_smiles, parse_smiles
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record
from shards.vocabulary import ELEMENTS, FIRST, UNKNOWN

_AROMATIC = "b c n o p s se as te si"
_SIGNS = r"( ) [ ] . = # - + \ / : ~ @ @@ @TH @AL @SP @TB @OH * $ % -> <- 0 1 2 3 4 5 6 7 8 9"
VOCABULARY = {token: FIRST + i for i, token in enumerate([*ELEMENTS, *_AROMATIC.split(), *_SIGNS.split()])}

# An organic-subset atom outside of brackets has two letters only in Br and Cl: "Sc" is S and c, "Cn" is C and n.
_OUTSIDE = re.compile(r"(\[[^\]]*\]?)|->|<-|Br|Cl|.", re.DOTALL)
_INSIDE = re.compile(r"@@|@(?:TH|AL|SP|TB|OH)|[A-Z][a-z]?|se|as|te|si|.", re.DOTALL)


def tokenize(smiles: str) -> list[str]:
    """Cut a SMILES into tokens, which joined give the SMILES again.

    The pattern of Schwaller et al. (ACS Cent. Sci. 5 (2019) 1572): atoms, bonds, branches, ring closures. There a
    bracketed atom is one token, of which there is no end; here it is cut into its parts too (isotope digits,
    element, chirality, hydrogens, charge), so that the vocabulary is closed.

    Parameters
    ----------
    smiles : str
        Any SMILES.
    """
    tokens: list[str] = []
    for match in _OUTSIDE.finditer(smiles):
        tokens += _INSIDE.findall(match.group()) if match.group(1) else [match.group()]
    return tokens


@FEATURES.register("smiles")
class SmilesFeature(Feature):
    """SMILES -> token ids of `VOCABULARY`, `shards.vocabulary.UNKNOWN` for what it lacks.

    Attributes
    ----------
    canonical : bool
        Tokens of RDKit's canonical SMILES; otherwise of the SMILES as the source spells it.
    largest_fragment : bool
        Leave out counter-ions and solvents; in canonical SMILES only.
    max_tokens : int
        Longer sequences are refused.
    vocabulary : int
        One more than the largest token id. It stands in the manifest, and cannot be chosen.
    """

    kind: ClassVar[Kind] = "sequence"
    step: Literal["smiles"] = "smiles"
    canonical: bool = True
    largest_fragment: bool = False
    max_tokens: int = Field(1024, ge=1)
    vocabulary: int = FIRST + len(VOCABULARY)

    @model_validator(mode="after")
    def _possible(self) -> SmilesFeature:
        if self.vocabulary != FIRST + len(VOCABULARY):
            raise ValueError(f"this version's vocabulary has {FIRST + len(VOCABULARY)} tokens, not {self.vocabulary}")
        if self.largest_fragment and not self.canonical:
            raise ValueError("'largest_fragment' needs canonical = true")
        return self

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a sequence."""
        fields = {"tokens": FieldSpec(dtype="int32", shape=("tokens",))}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``tokens`` (tokens,) int32, or None without a SMILES."""
        if record.smiles is None:
            return None
        if self.canonical:
            smiles = canonical_smiles(record.smiles, largest_fragment=self.largest_fragment)
        else:
            smiles = record.smiles.strip()
            parse_smiles(smiles)
        tokens = tokenize(smiles)
        if len(tokens) > self.max_tokens:
            raise DataError(
                f"the SMILES has {len(tokens)} tokens, the step takes {self.max_tokens}",
                where=record.id,
                do="raise max_tokens",
            )
        return {"tokens": np.array([VOCABULARY.get(token, UNKNOWN) for token in tokens], dtype=np.int32)}
