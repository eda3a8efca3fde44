"""The frozen embeddings of a part of a data set, with the labels and tags of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from finetune.data import check_schema
from finetune.evaluations.base import Evaluation, Subject
from finetune.loading import Foundation
from pretrain.data import as_evaluated
from pretrain.evaluate import embed_all
from shards.errors import ConfigError, DataError, suggest
from shards.orders.sequential import Sequential
from shards.reader import Dataset
from shards.schema import Sample
from shards.stream import BatchStream

BATCH = 64


@dataclass(frozen=True)
class Embedded:
    """N samples of a part, embedded by everything that the objective of the model compares.

    Attributes
    ----------
    z : dict of str to Tensor
        (N, D) unit rows by modality (or fusion), zero where absent.
    present : dict of str to Tensor
        (N,) bool.
    samples : list of Sample
        Their ids, labels and tags, without arrays.
    """

    z: dict[str, Tensor]
    present: dict[str, Tensor]
    samples: list[Sample]


def embed_part(foundation: Foundation, dataset: Dataset, split: str, part: str) -> Embedded:
    """Embed one part of a split, each sample once."""
    check_schema(foundation.model.specs, dataset, foundation.modalities)
    restricted = dataset.select(foundation.modalities)
    positions = restricted.positions(split, part)
    stream = BatchStream(
        restricted,
        positions,
        batch_size=BATCH,
        order=Sequential(),
        augmenter=as_evaluated(foundation.export.recipe, restricted.modalities),
    )
    z, present = embed_all(foundation.model, stream)
    bare = dataset.select([])
    return Embedded(z, present, [bare[int(position)] for position in positions])


def vectors_of(subject: Subject, part: str, name: str = "") -> tuple[np.ndarray, list[Sample], str]:
    """Return one embedding (n, D) of those samples of a part that have it, the samples, and its name.

    ``name`` is a modality or a fusion; empty: the first that the model compares.
    """
    assert isinstance(subject.model, Foundation)
    embedded = embed_part(subject.model, subject.dataset, subject.split, part)
    name = name or next(iter(embedded.z))
    if name not in embedded.z:
        raise ConfigError(f"the model has no embedding '{name}'", why=suggest(name, embedded.z))
    there = embedded.present[name].nonzero().squeeze(1).tolist()
    if len(there) < 2:
        raise DataError(f"part '{part}' has {len(there)} samples with '{name}'", where=subject.dataset.location)
    return embedded.z[name][there].numpy(), [embedded.samples[i] for i in there], name


class EmbeddingEvaluation(Evaluation):
    """Base of the evaluations of one embedding, of the samples of some parts together: nothing is fitted to labels.

    Attributes
    ----------
    parts : tuple of str
        Parts of the split that are looked at.
    embedding : str
        A modality or fusion of the model; empty: the first.
    """

    wants: ClassVar[type] = Foundation

    parts: tuple[str, ...] = Field(("train", "val", "test"), min_length=1)
    embedding: str = ""

    def pooled(self, subject: Subject) -> tuple[np.ndarray, list[Sample], str]:
        """Return what `vectors_of` does for all parts together."""
        found = [vectors_of(subject, part, self.embedding) for part in self.parts]
        return np.concatenate([v for v, _, _ in found]), [s for _, samples, _ in found for s in samples], found[0][2]
