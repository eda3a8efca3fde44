"""Search in the latent space: the materials of a data set that are nearest to a query of any modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.data import check_schema
from finetune.loading import Foundation
from shards.formats.dos_csv import read_dos
from shards.locate import locate
from shards.reader import Dataset
from shards.schema import Sample
from shards.sources.base import Record


@dataclass(frozen=True)
class Hit:
    """One material found: its id, tags, labels, and cosine similarity to the query."""

    id: str
    similarity: float
    tags: dict[str, str]
    labels: dict[str, float]


@dataclass(frozen=True)
class Index:
    """Embeddings of one modality of a data set.

    Attributes
    ----------
    vectors : ndarray
        (N, D) unit rows.
    samples : sequence of Sample
        N samples, for ids, tags and labels.
    """

    vectors: np.ndarray
    samples: Sequence[Sample]

    @classmethod
    def build(cls, foundation: Foundation, dataset: Dataset, modality: str = "crystal") -> Index:
        """Embed every sample of a data set that has the modality."""
        samples = [sample for sample in dataset if modality in sample.modalities]
        return cls(foundation.embed(samples, modality), samples)

    def nearest(self, query: np.ndarray, k: int = 10) -> list[Hit]:
        """Return the k nearest samples by cosine similarity.

        Parameters
        ----------
        query : ndarray
            (D,) unit vector, of any modality.
        k : int
            Number of hits.
        """
        similarity = self.vectors @ query
        order = np.argsort(-similarity, kind="stable")[:k]
        found = [(float(similarity[i]), self.samples[int(i)]) for i in order]
        return [Hit(sample.id, value, sample.tags, sample.labels) for value, sample in found]


def search(foundation: Foundation, query: Path, *, data: str, among: str = "crystal", k: int = 10) -> list[Hit]:
    """Find the materials of a data set that are nearest to a structure file or to a density of states.

    Parameters
    ----------
    foundation : Foundation
        Embeds query and candidates.
    query : Path
        CIF, POSCAR or pymatgen JSON of a crystal; or a ``.csv`` as `shards.formats.dos_csv.read_dos` reads it.
    data : str
        Data set, as in a recipe.
    among : str
        Modality by which the candidates are embedded.
    k : int
        Number of hits.
    """
    if query.suffix.lower() == ".csv":
        vector = foundation.embed(Record(id=str(query), dos=read_dos(query)), "dos")
    else:
        vector = foundation.embed(query)
    dataset = Dataset(locate(data), [among])
    check_schema(foundation.model.specs, dataset, [among])
    return Index.build(foundation, dataset, among).nearest(vector, k)
