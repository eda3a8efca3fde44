"""The index: unit vectors of one modality of a data set, with the ids, groups, labels and tags of its samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from finetune.data import check_schema
from finetune.loading import Foundation
from finetune.search.approximate import LARGE, Approximate, faiss_library
from finetune.search.approximate import Kind as FaissKind
from finetune.search.topk import EQUAL, dots, exact_topk, merged
from finetune.search.where import Where
from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from shards.schema import Sample

Faiss = Literal["never", "auto", "always"]
NONE = np.zeros(0, np.int64)


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
        (N, D) float32 unit rows.
    samples : sequence of Sample
        N samples without arrays and texts: ids, groups, tags and labels.
    modality : str
        By which they were embedded.
    model, data : str
        Seal of the model and sha256 of the data set; empty where unknown.
    faiss : str
        ``always``, ``never``, or ``auto``: where it is installed and there are more than a million vectors.
    faiss_kind : str
        See `Approximate`.
    """

    vectors: np.ndarray
    samples: Sequence[Sample]
    modality: str = ""
    model: str = ""
    data: str = ""
    faiss: Faiss = "auto"
    faiss_kind: FaissKind = "ivf"

    @classmethod
    def build(
        cls,
        foundation: Foundation,
        dataset: Dataset,
        modality: str = "crystal",
        *,
        positions: np.ndarray | None = None,
        batch_size: int = 64,
    ) -> Index:
        """Embed every sample of a data set that has the modality, batch by batch: no more are held at once.

        ``positions``: of the samples that are looked at, as of a part of a split; default: all.
        """
        check_schema(foundation.model.specs, dataset, [modality])
        there = dataset.presence(modality)
        chosen = np.arange(len(dataset)) if positions is None else positions
        chosen = chosen[there[chosen]]
        read = dataset.select([modality])
        vectors = np.empty((len(chosen), foundation.export.recipe.projection.dim), np.float32)
        bare: list[Sample] = []
        for start in range(0, len(chosen), batch_size):
            batch = [read[int(place)] for place in chosen[start : start + batch_size]]
            vectors[start : start + len(batch)] = foundation.embed(batch, modality, batch_size=batch_size)
            bare += [replace(sample, arrays={}, text={}) for sample in batch]
        seal = "" if foundation.source is None else foundation.seal
        return cls(vectors, bare, modality, seal, dataset.sha256)

    def save(self, folder: Path | str) -> None:
        """Write a sealed folder; see `finetune.search.stored`."""
        from finetune.search.stored import save_index

        save_index(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str, foundation: Foundation) -> Index:
        """Map a saved index into memory; one of another model is refused."""
        from finetune.search.stored import load_index

        return load_index(Path(folder), foundation)

    def nearest(self, query: np.ndarray, k: int = 10, *, where: Where | None = None) -> list[Hit]:
        """Return the k nearest samples by cosine similarity.

        Parameters
        ----------
        query : ndarray
            (D,) unit vector, of any modality.
        k : int
            Number of hits.
        where : Where, optional
            Conditions on what is found.
        """
        return self.nearest_of(query[None], k, where=where)[0]

    def nearest_of(
        self,
        queries: np.ndarray,
        k: int = 10,
        *,
        samples: Sequence[Sample] | None = None,
        exclude_self: bool = False,
        exclude_group: bool = False,
        exclude_duplicates: bool = False,
        where: Where | None = None,
    ) -> list[list[Hit]]:
        """Return the k nearest samples of each of Q unit vectors (Q, D); see `places` for the options."""
        scores, places = self.places(
            queries,
            k,
            samples=samples,
            exclude_self=exclude_self,
            exclude_group=exclude_group,
            exclude_duplicates=exclude_duplicates,
            where=where,
        )
        return [
            [self._hit(place, score) for place, score in zip(*row, strict=True) if place >= 0]
            for row in zip(places.tolist(), scores.tolist(), strict=True)
        ]

    def places(
        self,
        queries: np.ndarray,
        k: int = 10,
        *,
        samples: Sequence[Sample] | None = None,
        exclude_self: bool = False,
        exclude_group: bool = False,
        exclude_duplicates: bool = False,
        where: Where | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine similarities (Q, k) and rows of the index (Q, k); -inf and -1 where fewer may be found.

        Parameters
        ----------
        queries : ndarray
            (Q, D) unit vectors.
        k : int
            Number of hits.
        samples : sequence of Sample
            What the Q queries are, where any is excluded.
        exclude_self, exclude_group : bool
            A query does not find its own id; nor anything of its own group, itself included.
        exclude_duplicates : bool
            Nor what has the query's own vector: a record of the same content under another id.
        where : Where, optional
            Conditions on what is found.
        """
        queries = np.atleast_2d(np.asarray(queries, dtype=np.float32))
        if queries.shape[1] != self.vectors.shape[1]:
            raise ConfigError(f"the query has {queries.shape[1]} numbers, the index {self.vectors.shape[1]}")
        if not np.isfinite(queries).all():
            raise DataError("the query holds NaN or infinity")
        barred = self._barred(samples, len(queries), exclude_self, exclude_group)
        # conditions may leave a handful of a million, which cells would miss
        if where is None and self._large:
            return self._approximate(queries, k, barred, not exclude_duplicates)
        allowed = None if where is None else where.mask(self.samples)
        return exact_topk(self.vectors, queries, k, barred=barred, allowed=allowed, equal=not exclude_duplicates)

    def _barred(self, samples: Sequence[Sample] | None, count: int, own: bool, group: bool) -> list[np.ndarray] | None:
        if not (own or group):
            return None
        if samples is None or len(samples) != count:
            raise ConfigError("what is to be excluded is not known", do="give the sample of every query")
        found = []
        for sample in samples:
            rows = self._by_id.get(sample.id, NONE)
            if group and sample.group:
                rows = np.union1d(rows, self._by_group.get(sample.group, NONE))
            found.append(rows)
        return found

    @cached_property
    def _by_id(self) -> dict[str, np.ndarray]:
        return _rows_by(sample.id for sample in self.samples)

    @cached_property
    def _by_group(self) -> dict[str, np.ndarray]:
        return _rows_by(sample.group for sample in self.samples)

    @property
    def _large(self) -> bool:
        if self.faiss != "auto":
            return self.faiss == "always"
        if len(self.vectors) <= LARGE:
            return False
        try:
            faiss_library()
        except ConfigError:
            return False
        return True

    @cached_property
    def _cells(self) -> Approximate:
        return Approximate(self.vectors, self.faiss_kind)

    def _approximate(
        self, queries: np.ndarray, k: int, barred: list[np.ndarray] | None, equal: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score FAISS's candidates exactly; it is asked for as many more as may be barred."""
        more = max(map(len, barred), default=0) if barred else 0
        places = self._cells.candidates(queries, k + more + (0 if equal else k))
        row, column = np.nonzero(places >= 0)
        place = places[row, column]
        scores = dots(queries, self.vectors, row, place)
        keep = np.ones(len(row), dtype=bool) if equal else scores < EQUAL
        for number, rows in enumerate(barred or ()):
            keep &= ~((row == number) & np.isin(place, rows))
        k = min(k, len(self.vectors))
        best = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
        return merged(best, row[keep], place[keep], scores[keep])

    def _hit(self, place: int, score: float) -> Hit:
        sample = self.samples[place]
        return Hit(sample.id, score, sample.tags, sample.labels)


def _rows_by(keys: Iterable[str]) -> dict[str, np.ndarray]:
    found: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key:
            found[key].append(row)
    return {key: np.array(rows, np.int64) for key, rows in found.items()}
