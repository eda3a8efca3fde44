"""Leakage: what one part of a split holds and another part holds as well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.codecs import digest
from shards.fingerprint import FIELDS, crystal_modalities, duplicates
from shards.manifest import Split
from shards.reader import Dataset
from shards.schema import Arrays
from shards.splits.plan import UNASSIGNED

EXAMPLES = 5
KINDS = {
    "structure": "same structure",
    "group": "same group",
    "id": "same id but for the case",
    "text": "same text",
    "values": "same bytes of a modality",
}
# a template may give two materials one text, and two alloys may have one process: no error by itself
GRAVE = ("structure", "group", "id")


@dataclass(frozen=True)
class Leak:
    """Samples of one kind that are alike and stand in several parts of a split.

    Attributes
    ----------
    split, kind : str
        The split; what is alike (`KINDS`).
    sets, samples : int
        Sets of samples that are alike and cross parts, and the samples in them.
    examples : list of dict
        The first such sets: part to ids.
    """

    split: str
    kind: str
    sets: int
    samples: int
    examples: list[dict[str, list[str]]]


@dataclass(frozen=True)
class LeakageReport:
    """What is alike in a data set, and which of it crosses the parts of a split.

    Attributes
    ----------
    alike : dict of str to list of list of str
        For each kind the sets of two or more samples that are alike.
    leaks : list of Leak
        One for each split and kind, also where nothing leaks.
    """

    alike: dict[str, list[list[str]]]
    leaks: list[Leak]

    @property
    def grave(self) -> list[Leak]:
        """The leaks that make a figure on the test part worthless: all but those of texts and values."""
        return [leak for leak in self.leaks if leak.sets and leak.kind in GRAVE]

    def table(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        alike = {kind: {"sets": len(sets), "examples": sets[:EXAMPLES]} for kind, sets in self.alike.items()}
        return {"alike": alike, "leaks": [asdict(leak) for leak in self.leaks]}


def find_leakage(dataset: Dataset, progress: Callable[[int], None] | None = None) -> LeakageReport:
    """Look for structures, groups, ids, texts and values that several parts of a split share.

    Structures are compared by `shards.fingerprint.duplicates`, texts without regard to space, the values of
    modalities by their digests. Samples that a split leaves unassigned leak nowhere.

    Parameters
    ----------
    dataset : Dataset
        What is read: metadata, texts, and the graph modalities that hold a crystal.
    progress : callable, optional
        Called with the number of samples read.
    """
    crystals = crystal_modalities(dataset.modalities)
    texts = [name for name, spec in dataset.modalities.items() if spec.kind == "text"]
    alike = {kind: defaultdict[object, list[str]](list) for kind in KINDS if kind != "structure"}
    structures: dict[str, list[tuple[str, Arrays]]] = {name: [] for name in crystals}
    for done, sample in enumerate(dataset.select([*crystals, *texts]), start=1):
        alike["group"][sample.group].append(sample.id)
        alike["id"][sample.id.casefold()].append(sample.id)
        for name, text in sample.text.items():
            alike["text"][name, digest(" ".join(text.split()).encode())].append(sample.id)
        for name, arrays in sample.arrays.items():
            structures[name].append((sample.id, {key: arrays[key].copy() for key in FIELDS}))
        if progress is not None:
            progress(done)
    for name in sorted(set(dataset.modalities) - set(texts)):
        digests, present = dataset.digests(name), dataset.presence(name)
        for position in np.flatnonzero(present):
            alike["values"][name, digests[position].tobytes()].append(dataset.ids[position])
    sets = {kind: [ids for ids in held.values() if len(ids) > 1] for kind, held in alike.items()}
    sets["structure"] = [ids for held in structures.values() for ids in duplicates(held)]
    splits = dataset.manifest.splits.items()
    leaks = [_leak(name, split, kind, sets[kind]) for name, split in splits for kind in KINDS]
    return LeakageReport({kind: sets[kind] for kind in KINDS}, leaks)


def _leak(name: str, split: Split, kind: str, sets: Iterable[list[str]]) -> Leak:
    part_of = {sample_id: part for part, ids in split.ids.items() if part != UNASSIGNED for sample_id in ids}
    crossing = []
    for ids in sets:
        parts: dict[str, list[str]] = {}
        for sample_id in ids:
            if sample_id in part_of:
                parts.setdefault(part_of[sample_id], []).append(sample_id)
        if len(parts) > 1:
            crossing.append(parts)
    samples = sum(len(ids) for parts in crossing for ids in parts.values())
    return Leak(name, kind, len(crossing), samples, crossing[:EXAMPLES])
