"""What a data set holds: coverage of the modalities, splits, labels, elements, sizes, examples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.reader import Dataset
from shards.schema import META, Sample

BINS = 24
TEXT_CHARACTERS = 200
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def summarize(dataset: Dataset) -> dict[str, Any]:
    """Summarise a data set by its manifest and its indices; no sample is read.

    Returns
    -------
    dict
        ``name``, ``samples``, ``modalities`` (kind, fields, feature parameters), ``coverage``
        (matrix: samples that have both modalities), ``complete`` (samples that have all),
        ``splits`` (samples and complete samples a part), ``labels``, ``shards``, ``shard_samples``
        (of each), ``bytes``, ``sizes`` (bytes of each modality; ``meta`` holds texts, labels and tags),
        ``quarantined`` (id to reason), ``reasons`` (see `grouped_reasons`).
    """
    manifest = dataset.manifest
    names = list(dataset.modalities)
    present = presence(dataset)
    both = present.astype(np.int64).T @ present.astype(np.int64)
    complete: np.ndarray = np.all(present, axis=1, keepdims=False)
    return {
        "name": manifest.name,
        "source": manifest.source,
        "samples": len(dataset),
        "complete": int(complete.sum()),
        "modalities": {name: spec.model_dump() for name, spec in dataset.modalities.items()},
        "coverage": {a: {b: int(both[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
        "splits": {
            split: {
                part: {
                    "samples": len(dataset.positions(split, part)),
                    "complete": int(complete[dataset.positions(split, part)].sum()),
                }
                for part in content.ids
            }
            for split, content in manifest.splits.items()
        },
        "labels": {name: stats.model_dump() for name, stats in manifest.labels.items()},
        "shards": len(manifest.shards),
        "shard_samples": dataset.shard_sizes,
        "sizes": {part: int(dataset.sizes(part).sum()) for part in _parts(dataset)},
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "quarantined": manifest.quarantined,
        "reasons": grouped_reasons(manifest.quarantined),
    }


def _parts(dataset: Dataset) -> list[str]:
    return [META, *(name for name, spec in dataset.modalities.items() if spec.kind != "text")]


def presence(dataset: Dataset) -> np.ndarray:
    """Return (N, M) bool: which sample has which of the data set's modalities."""
    columns = [dataset.presence(name) for name in dataset.modalities]
    return np.stack(columns, axis=1) if columns else np.zeros((len(dataset), 0), dtype=bool)


@dataclass
class Survey:
    """What the samples themselves say, collected by `survey`.

    Attributes
    ----------
    labels : dict of str to list of float
        Known values.
    elements : dict of str to int
        Symbol to the number of samples that contain the element.
    without_elements : int
        Samples of which no composition is known.
    tags : dict of str to Counter
        How often each value occurs.
    texts : dict of str to list of int
        Length in characters of each text.
    groups : int
        Different groups.
    examples : list of dict
        A few samples: ``id``, ``group``, ``labels``, ``tags``, and ``modalities``, each with its
        arrays' dtypes and shapes or the beginning of its text.
    """

    labels: dict[str, list[float]] = field(default_factory=dict)
    elements: Counter[str] = field(default_factory=Counter)
    without_elements: int = 0
    tags: dict[str, Counter[str]] = field(default_factory=dict)
    texts: dict[str, list[int]] = field(default_factory=dict)
    groups: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def table(self) -> dict[str, Any]:
        """Return the survey as JSON values; labels as histograms."""
        return {
            "groups": self.groups,
            "histograms": {name: histogram(values) for name, values in sorted(self.labels.items())},
            "elements": dict(sorted(self.elements.items(), key=lambda pair: (-pair[1], pair[0]))),
            "without_elements": self.without_elements,
            "tags": {
                name: {"known": counts.total(), "different": len(counts), "most": dict(counts.most_common(5))}
                for name, counts in sorted(self.tags.items())
            },
            "texts": {
                name: {"count": len(lengths), "mean_characters": float(np.mean(lengths)), "longest": max(lengths)}
                for name, lengths in sorted(self.texts.items())
            },
            "examples": self.examples,
        }


def survey(dataset: Dataset, *, examples: int = 3, progress: Callable[[int], None] | None = None) -> Survey:
    """Read the metadata of every sample, and a few samples whole.

    The elements of a sample are those of its tag ``formula``, or else of its crystal.

    Parameters
    ----------
    dataset : Dataset
        What to look at.
    examples : int
        Samples to describe, spread over the data set.
    progress : callable, optional
        Called with the number of samples read.
    """
    found, groups = Survey(), set()
    texts = [name for name, spec in dataset.modalities.items() if spec.kind == "text"]
    crystals = [name for name, spec in dataset.modalities.items() if "atomic_numbers" in spec.fields]
    with_crystals = dataset.select(crystals)
    for position, sample in enumerate(dataset.select(texts)):
        groups.add(sample.group)
        for name, value in sample.labels.items():
            found.labels.setdefault(name, []).append(value)
        for name, tag in sample.tags.items():
            found.tags.setdefault(name, Counter())[tag] += 1
        for name, text in sample.text.items():
            found.texts.setdefault(name, []).append(len(text))
        elements = elements_of_formula(sample.tags.get("formula", ""))
        if not elements and crystals:
            elements = _elements_of_arrays(with_crystals[position])
        found.elements.update(elements)
        found.without_elements += not elements
        if progress is not None:
            progress(position + 1)
    found.groups = len(groups)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(examples, len(dataset))).round().astype(int))
    found.examples = [describe(dataset[int(position)]) for position in chosen]
    return found


def describe(sample: Sample) -> dict[str, Any]:
    """Describe a sample: everything but the numbers of its arrays."""
    arrays = {
        name: {key: f"{array.dtype}{list(array.shape)}" for key, array in held.items()}
        for name, held in sample.arrays.items()
    }
    return {
        "id": sample.id,
        "group": sample.group,
        "labels": dict(sample.labels),
        "tags": dict(sample.tags),
        "modalities": {**arrays, **{name: text[:TEXT_CHARACTERS] for name, text in sample.text.items()}},
    }


def elements_of_formula(formula: str) -> set[str]:
    """Return the symbols of the elements in a formula, none where the text is no formula."""
    from pymatgen.core import Composition

    try:
        return set(Composition(formula).get_el_amt_dict())
    except ValueError:
        return set()


def _elements_of_arrays(sample: Sample) -> set[str]:
    from pymatgen.core import Element

    numbers = {int(number) for arrays in sample.arrays.values() for number in np.unique(arrays["atomic_numbers"])}
    return {Element.from_Z(number).symbol for number in numbers}


def histogram(values: list[float]) -> dict[str, list[float]]:
    """Return ``counts`` and ``edges`` (one more) of bins of equal width from the least to the greatest value.

    Values that are equal but for rounding, or further apart than a float can say, share one bin.
    """
    low, high = min(values), max(values)
    if not BINS * np.spacing(max(abs(low), abs(high))) < high - low < np.inf:
        return {"counts": [len(values)], "edges": [low - 0.5, high + 0.5]}
    counts, edges = np.histogram(values, bins=BINS)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def grouped_reasons(quarantined: Mapping[str, str]) -> list[dict[str, Any]]:
    """Count the reasons why records were refused, the most frequent first.

    Reasons that differ in numbers alone are one: their numbers are written as ``#``.

    Returns
    -------
    list of dict
        ``reason``, ``count``, and the id of one record as ``example``.
    """
    groups: dict[str, list[str]] = {}
    for sample_id, reason in quarantined.items():
        first = reason.splitlines()[0] if reason else "no reason given"
        groups.setdefault(NUMBER.sub("#", first), []).append(sample_id)
    rows = [{"reason": reason, "count": len(ids), "example": ids[0]} for reason, ids in groups.items()]
    return sorted(rows, key=lambda row: (-row["count"], row["reason"]))
