"""Random access to a data set: mmap, an index, and a digest check of every member that is read."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from shards.errors import DataError, suggest
from shards.layer import Layer
from shards.manifest import Manifest
from shards.schema import ModalitySpec, Sample
from shards.store import LocalStore


class Dataset:
    """A folder of shards, read by position or by id.

    The arrays of a sample are views of the mapped shard: they cannot be written to, and need no copy.

    Parameters
    ----------
    folder : Path or str
        A folder that `shards.build` published.
    modalities : sequence of str, optional
        Read these alone; the bytes of the others are not touched. Default: all.

    Attributes
    ----------
    folder : Path
        Where the manifest, the seal and the indices are on this host.
    manifest : Manifest
        What the data set holds.
    modalities : dict of str to ModalitySpec
        What is read.
    ids : list of str
        N sample ids.
    shard_sizes : list of int
        Samples a shard, in the order of the samples.
    """

    def __init__(self, folder: Path | str, modalities: Sequence[str] | None = None) -> None:
        self._base = Layer(LocalStore(Path(folder)))
        self.folder = self._base.store.folder
        self.manifest: Manifest = self._base.manifest
        self.ids = self._base.ids
        self.shard_sizes = [entry.samples for entry in self.manifest.shards]
        self._open(self.manifest.modalities if modalities is None else modalities)

    def select(self, modalities: Sequence[str]) -> Dataset:
        """Return the same data set, reading ``modalities`` alone; it shares the open files."""
        chosen = copy.copy(self)
        chosen._open(modalities)
        return chosen

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Sample:
        """Read the sample at ``position``, verifying each member."""
        if not 0 <= position < len(self.ids):
            raise IndexError(f"position {position} of {len(self.ids)} samples")
        return self._base.read(position)

    def position(self, sample_id: str) -> int:
        """Return where a sample stands, or raise `DataError` with a suggestion."""
        try:
            return self._base.positions[sample_id]
        except KeyError:
            raise DataError(
                f"there is no sample '{sample_id}'", where=self.folder, why=suggest(sample_id, self.ids)
            ) from None

    def positions(self, split: str, part: str) -> np.ndarray:
        """Return the positions of one part of a split, ascending."""
        parts = self.manifest.split(split).ids
        if part not in parts:
            raise DataError(f"split '{split}' has no part '{part}'", why=suggest(part, parts))
        return np.sort([self.position(sample_id) for sample_id in parts[part]]).astype(np.int64)

    def presence(self, modality: str) -> np.ndarray:
        """Return (N,) bool: which samples have a modality, by the indices alone."""
        self._check(modality)
        return self._base.presence(modality)

    def lengths(self, axis: str) -> np.ndarray:
        """Return (N,) int64: the length of a ragged axis in each sample, 0 where the modality is absent.

        Parameters
        ----------
        axis : str
            Modality and axis, for example ``crystal.edges``.
        """
        known = self._base.columns.axes
        if axis not in known:
            raise DataError(f"the data set has no ragged axis '{axis}'", where=self.folder, why=suggest(axis, known))
        return self._base.lengths(axis)

    def prefetch(self, positions: np.ndarray) -> None:
        """Begin to fetch the samples at ``positions``, which will be read in this order; local shards need none."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.manifest.name

    @property
    def digest(self) -> str:
        """What the data set is known by: the sha256 of its manifest; sets that are read together are joined by +."""
        return self._base.manifest_sha256

    def expected_members(self, shard: int) -> list[str]:
        """Return the names of the tar members of a shard, in order, as its index gives them."""
        return self._base.expected_members(shard)

    def _open(self, names: Collection[str]) -> None:
        for name in names:
            self._check(name)
        self.modalities: dict[str, ModalitySpec] = {name: self.manifest.modalities[name] for name in names}
        self._base = self._base.select(names)

    def _check(self, modality: str) -> None:
        known = self.manifest.modalities
        if modality not in known:
            raise DataError(
                f"the data set has no modality '{modality}'", where=self.folder, why=suggest(modality, known)
            )
