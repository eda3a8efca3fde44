"""Overlays: modalities that were computed later, in a data set of their own, joined to another one by id.

An overlay holds some of the ids of its base. Every modality stands in one layer only, and so does every
label of a sample; a tag may stand in several as long as they agree.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from shards.errors import DataError
from shards.layer import Layer
from shards.manifest import LabelStats, Manifest, OverlayOf
from shards.schema import Sample

if TYPE_CHECKING:
    from shards.reader import Dataset


class OverlayPlan:
    """What may enter an overlay of a data set; for the builder.

    Parameters
    ----------
    base : Dataset
        The data set to add to, opened without overlays.
    modalities : collection of str
        Names of the new modalities.

    Attributes
    ----------
    overlay_of : OverlayOf
        For the manifest of the overlay.

    Raises
    ------
    DataError
        Where the base has one of the modalities.
    """

    def __init__(self, base: Dataset, modalities: Collection[str]) -> None:
        twice = sorted(set(modalities) & set(base.manifest.modalities))
        if twice:
            raise DataError(
                f"the base has the modality '{twice[0]}' already",
                where=base.location,
                do="give the new one another name",
            )
        self.base = base.select([])
        self.overlay_of = OverlayOf(name=base.manifest.name, sha256=base.manifest.content_sha256)

    def reduced(self, sample: Sample) -> Sample:
        """Return a sample without the labels and tags that the base holds of it, and in the base's group.

        Raises
        ------
        DataError
            Where the base has no such sample, or says something else of it.
        """
        held = self.base[self.base.position(sample.id)]
        return replace(
            sample,
            labels=_further("label", sample.labels, held.labels, sample.id),
            tags=_further("tag", sample.tags, held.tags, sample.id),
            group=held.group,
        )


def _further(kind: str, new: dict, held: dict, sample_id: str) -> dict:
    """Return what is in ``new`` alone; raise `DataError` where the two disagree."""
    for name in new:
        if name in held and new[name] != held[name]:
            why = f"{new[name]!r} here, {held[name]!r} in the base"
            raise DataError(f"{kind} '{name}' differs from that of the base", where=sample_id, why=why)
    return {name: value for name, value in new.items() if name not in held}


def rows_of(base: Layer, overlay: Layer) -> np.ndarray:
    """Return (N,) int64: the position in ``overlay`` of each sample of ``base``, -1 where it has none.

    Raises
    ------
    DataError
        Where ``overlay`` was made for another data set, or holds an id that ``base`` lacks.
    """
    made_for = overlay.manifest.overlay_of
    if made_for is not None and made_for.sha256 != base.manifest.content_sha256:
        raise DataError(
            f"the overlay '{overlay.manifest.name}' was made for another data set than '{base.manifest.name}'",
            where=overlay.store.location,
            why=f"'{made_for.name}', whose shards have sha256 {made_for.sha256}, not {base.manifest.content_sha256}",
            do="build the overlay again",
        )
    rows = np.full(len(base.ids), -1, np.int64)
    for row, sample_id in enumerate(overlay.ids):
        position = base.positions.get(sample_id)
        if position is None:
            raise DataError(
                f"the overlay '{overlay.manifest.name}' has a sample '{sample_id}' that '{base.manifest.name}' lacks",
                where=overlay.store.location,
            )
        rows[position] = row
    return rows


def joined(sample: Sample, further: Sample, *, where: str) -> Sample:
    """Return a sample with what an overlay adds to it; raise `DataError` where the two contradict each other."""
    for name in further.labels:
        if name in sample.labels:
            raise DataError(f"label '{name}' of sample '{sample.id}' stands in two layers", where=where)
    for name, value in further.tags.items():
        if sample.tags.get(name, value) != value:
            raise DataError(f"tag '{name}' of sample '{sample.id}' differs between two layers", where=where)
    return Sample(
        id=sample.id,
        arrays=sample.arrays | further.arrays,
        text=sample.text | further.text,
        labels=sample.labels | further.labels,
        tags=sample.tags | further.tags,
        group=sample.group,
    )


def merged_manifest(base: Layer, overlays: Sequence[Layer]) -> Manifest:
    """Return the base's manifest with the modalities, coverage and label statistics of all layers.

    Raises
    ------
    DataError
        Where a modality stands in two layers.
    """
    modalities, coverage = dict(base.manifest.modalities), dict(base.manifest.coverage)
    labels = dict(base.manifest.labels)
    owner = dict.fromkeys(modalities, base.store.location)
    for layer in overlays:
        for name, spec in layer.manifest.modalities.items():
            if name in modalities:
                raise DataError(
                    f"modality '{name}' stands in two layers", where=f"{owner[name]} and {layer.store.location}"
                )
            modalities[name], owner[name] = spec, layer.store.location
        coverage |= layer.manifest.coverage
        for name, stats in layer.manifest.labels.items():
            labels[name] = pooled(labels[name], stats) if name in labels else stats
    return base.manifest.model_copy(update={"modalities": modalities, "coverage": coverage, "labels": labels})


def pooled(a: LabelStats, b: LabelStats) -> LabelStats:
    """Return the statistics of two disjoint groups of samples together."""
    count = a.count + b.count
    mean = (a.count * a.mean + b.count * b.mean) / count
    square = sum(part.count * (part.std**2 + (part.mean - mean) ** 2) for part in (a, b)) / count
    return LabelStats(count=count, mean=mean, std=math.sqrt(square), min=min(a.min, b.min), max=max(a.max, b.max))
