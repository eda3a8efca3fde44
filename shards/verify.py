"""Verifying a data set from end to end: seal, shards, indices, and every member against the schema."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

from shards.errors import DataError
from shards.reader import Dataset
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


def verify_dataset(folder: Path, progress: Callable[[int], None] | None = None) -> int:
    """Check a data set completely and return its number of samples.

    Raises
    ------
    DataError
        Naming the first file, or shard and member, that is missing, added, damaged or contradicts the schema.
    """
    verify(folder, error=DataError)
    dataset = Dataset(folder)
    for number, entry in enumerate(dataset.manifest.shards):
        check_members(folder / entry.file, dataset.expected_members(number))
    for done, sample in enumerate(dataset, start=1):
        for name in sample.modalities:
            value = sample.value(name)
            assert value is not None
            dataset.modalities[name].check(value, where=f"{folder}: {sample.id!r}")
        if progress:
            progress(done)
    return len(dataset)
