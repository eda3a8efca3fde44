"""Verifying a data set from end to end: its seal, every member of every shard, every claim of the manifest."""

from __future__ import annotations

import math
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from shards.errors import DataError
from shards.executors import compute
from shards.manifest import LabelStats, Split
from shards.reader import Dataset
from shards.schema import Sample
from shards.sealed import verify


def check_members(path: Path, expected: list[str]) -> None:
    """Raise `DataError` where a shard holds a member that its index does not name, or lacks one.

    Our reader never looks at such a member, but another reader of the tar would, and may execute it.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            found = [member.name for member in tar]
    except tarfile.TarError as error:
        raise DataError("a shard is no valid tar file", where=path, why=str(error)) from None
    known = set(expected)
    for name in found:
        if name not in known:
            raise DataError("a shard holds a member that its index does not name", where=f"{path}: {name}")
    if found != expected:
        raise DataError("the members of a shard are not those of its index", where=path)


def verify_dataset(folder: Path, progress: Callable[[int], None] | None = None, *, workers: int = 1) -> int:
    """Check a data set completely and return its number of samples.

    Parameters
    ----------
    folder : Path
        A sealed folder of shards.
    progress : callable, optional
        Called with the number of samples checked.
    workers : int
        Processes that read shards.

    Raises
    ------
    DataError
        Naming the first file, or shard and member, that is missing, added, damaged or contradicts the schema;
        or what the manifest says that the samples do not.
    """
    verify(folder, error=DataError)
    dataset = Dataset(folder)
    manifest, found = dataset.manifest, _Contents()
    for part in _parts(dataset, workers):
        found.add(part)
        if progress is not None:
            progress(found.samples)
    where = folder / "manifest.json"
    if found.samples != manifest.samples:
        raise DataError(f"{found.samples} samples, the manifest says {manifest.samples}", where=where)
    for name, count in manifest.coverage.items():
        if found.coverage[name] != count:
            raise DataError(f"{found.coverage[name]} samples have '{name}', the manifest says {count}", where=where)
    unknown = sorted(set(found.labels) - set(manifest.labels))
    if unknown:
        raise DataError(f"samples have a label '{unknown[0]}' that the manifest does not name", where=where)
    for name, stats in manifest.labels.items():
        _check_label(name, found.labels.get(name, []), stats, where)
    for name, split in manifest.splits.items():
        _check_split(name, split, dataset.ids, where)
    return found.samples


@dataclass
class _Contents:
    """What the samples of one shard, or of all, hold."""

    samples: int = 0
    coverage: Counter[str] = field(default_factory=Counter)
    labels: dict[str, list[float]] = field(default_factory=dict)

    def add(self, other: _Contents) -> None:
        self.samples += other.samples
        self.coverage += other.coverage
        for name, values in other.labels.items():
            self.labels.setdefault(name, []).extend(values)


def _parts(dataset: Dataset, workers: int) -> Iterator[_Contents]:
    shards = range(len(dataset.manifest.shards))
    if workers <= 1:
        return (_check_shard(dataset, number) for number in shards)
    return compute(_check_shard_apart, ((dataset.folder, number) for number in shards), workers=workers)


def _check_shard_apart(job: tuple[Path, int]) -> _Contents:
    folder, number = job
    return _check_shard(_opened(folder), number)


@lru_cache(maxsize=1)
def _opened(folder: Path) -> Dataset:
    """Return the data set of a process that checks shards for one call and ends."""
    return Dataset(folder)


def _check_shard(dataset: Dataset, number: int) -> _Contents:
    folder, found = dataset.folder, _Contents()
    check_members(folder / dataset.manifest.shards[number].file, dataset.expected_members(number))
    first = sum(dataset.shard_sizes[:number])
    for position in range(first, first + dataset.shard_sizes[number]):
        sample = dataset[position]
        _check_sample(sample, dataset, where=f"{folder}: {sample.id!r}")
        found.samples += 1
        found.coverage.update(sample.modalities)
        for name, value in sample.labels.items():
            found.labels.setdefault(name, []).append(value)
    return found


def _check_sample(sample: Sample, dataset: Dataset, *, where: str) -> None:
    for name in sample.modalities:
        value = sample.value(name)
        assert value is not None
        dataset.modalities[name].check(value, where=where)
    for name, label in sample.labels.items():
        if not math.isfinite(label):
            raise DataError(f"label '{name}' is {label}", where=where, do="leave unknown labels out")


def _check_label(name: str, values: list[float], stats: LabelStats, where: Path) -> None:
    """Raise `DataError` unless the values have the statistics of the manifest, up to rounding."""
    if len(values) != stats.count:
        raise DataError(f"{len(values)} samples have label '{name}', the manifest says {stats.count}", where=where)
    array = np.asarray(values, dtype=np.float64)
    found = (array.mean(), array.std(), array.min(), array.max())
    claimed = (stats.mean, stats.std, stats.min, stats.max)
    if not np.allclose(found, claimed, rtol=1e-9, atol=1e-9 * np.abs(array).max()):
        raise DataError(f"label '{name}' has mean, std, min, max {found}, the manifest says {claimed}", where=where)


def _check_split(name: str, split: Split, ids: list[str], where: Path) -> None:
    """Raise `DataError` unless the parts hold every sample once, and nothing else."""
    counts = Counter(sample_id for part in split.ids.values() for sample_id in part)
    twice = next((sample_id for sample_id, count in counts.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"sample '{twice}' stands twice in split '{name}'", where=where)
    strange = sorted(set(counts) ^ set(ids))
    if strange:
        known = "is in no part of" if strange[0] not in counts else "is unknown, but stands in"
        raise DataError(f"sample '{strange[0]}' {known} split '{name}'", where=where)
