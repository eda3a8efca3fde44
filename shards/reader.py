"""Random access to a data set: an index, and a digest check of every member that is read."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.errors import DataError, suggest
from shards.layer import Layer
from shards.manifest import Manifest
from shards.overlay import joined, merged_manifest, rows_of
from shards.schema import ModalitySpec, Sample
from shards.store import open_store

if TYPE_CHECKING:
    from shards.remote import RemoteOptions

# beyond this many ids it takes too long to look for one that is alike
SUGGESTED = 10_000


class Dataset:
    """Samples by position or by id, from a folder of shards and any overlays of it.

    The arrays of a sample are views of the mapped shard: they cannot be written to, and cost no copy.

    Parameters
    ----------
    folder : Path or str
        A folder that `shards.build` published, or its URL (``https://...``, ``s3://...``, any of fsspec's);
        see `shards.remote` for how a URL is read.
    modalities : sequence of str, optional
        Read these alone; the bytes of the others are not touched. Default: all.
    overlays : sequence of Path or str, optional
        Data sets that hold further modalities of some of the samples, joined by id; see `shards.overlay`.
    remote : RemoteOptions, optional
        Bound of the cache, time-outs and retries, where ``folder`` or an overlay is a URL.

    Attributes
    ----------
    folder : Path
        Where the manifest, the seal and the indices are on this host.
    location : str
        The data set as the user named it, without credentials.
    sha256 : str
        Identity of what is read: the sha256 of the manifest, joined by + to those of the overlays.
    name : str
        Name of the data set.
    contents : tuple of str
        Identity of the samples of each layer, whatever splits stand beside them.
    manifest : Manifest
        What the data set holds, overlays included; its shards are those of ``folder``.
    modalities : dict of str to ModalitySpec
        What is read.
    ids : list of str
        N sample ids.
    shard_sizes : list of int
        Samples a shard, in the order of the samples.
    """

    def __init__(
        self,
        folder: Path | str,
        modalities: Sequence[str] | None = None,
        overlays: Sequence[Path | str] = (),
        remote: RemoteOptions | None = None,
    ) -> None:
        self._base, *others = [Layer(open_store(place, remote)) for place in (folder, *overlays)]
        self._overlays = [(layer, rows_of(self._base, layer)) for layer in others]
        self.folder, self.location = self._base.store.folder, self._base.store.location
        hashes = [layer.manifest_sha256 for layer in (self._base, *others)]
        self.sha256 = "+".join(hashes)
        self.contents = tuple(layer.manifest.content_sha256 for layer in (self._base, *others))
        self.manifest: Manifest = merged_manifest(self._base, others) if others else self._base.manifest
        self.name = self.manifest.name
        self.ids = self._base.ids
        self.shard_sizes = [entry.samples for entry in self.manifest.shards]
        self._open(self.manifest.modalities if modalities is None else modalities)

    def select(self, modalities: Collection[str]) -> Dataset:
        """Return the same data set, reading ``modalities`` alone; the two share what is open."""
        chosen = copy.copy(self)
        chosen._open(modalities)
        return chosen

    def close(self) -> None:
        """Give back files, threads and connections; samples that were read stay valid."""
        for layer, _ in self._layers:
            layer.store.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Sample:
        """Read the sample at ``position``, verifying each member."""
        if not 0 <= position < len(self.ids):
            raise IndexError(f"position {position} of {len(self.ids)} samples")
        sample = self._base.read(position)
        for layer, rows in self._overlays:
            row = int(rows[position])
            if row >= 0:
                sample = joined(sample, layer.read(row), where=layer.store.location)
        return sample

    def position(self, sample_id: str) -> int:
        """Return where a sample stands, or raise `DataError` with a suggestion."""
        try:
            return self._base.positions[sample_id]
        except KeyError:
            why = suggest(sample_id, self.ids) if len(self) <= SUGGESTED else None
            raise DataError(f"there is no sample '{sample_id}'", where=self.location, why=why) from None

    def positions(self, split: str, part: str) -> np.ndarray:
        """Return the positions of one part of a split, ascending."""
        parts = self.manifest.split(split).ids
        if part not in parts:
            raise DataError(f"split '{split}' has no part '{part}'", why=suggest(part, parts))
        return np.sort([self.position(sample_id) for sample_id in parts[part]]).astype(np.int64)

    def presence(self, modality: str) -> np.ndarray:
        """Return (N,) bool: which samples have a modality, by the indices alone."""
        self._check(modality)
        layer, rows = next(pair for pair in self._layers if modality in pair[0].manifest.modalities)
        return self._spread(layer.presence(modality), rows)

    def lengths(self, axis: str) -> np.ndarray:
        """Return (N,) int64: the length of a ragged axis in each sample, 0 where the modality is absent.

        Parameters
        ----------
        axis : str
            Modality and axis, for example ``crystal.edges``.
        """
        known = [name for layer, _ in self._layers for name in layer.columns.axes]
        if axis not in known:
            raise DataError(f"the data set has no ragged axis '{axis}'", where=self.location, why=suggest(axis, known))
        layer, rows = next(pair for pair in self._layers if axis in pair[0].columns.axes)
        return self._spread(layer.lengths(axis), rows)

    def sizes(self, part: str) -> np.ndarray:
        """Return (N,) int64: the bytes of each sample's member ``part``, ``meta`` or a modality that has arrays."""
        layer, rows = next(pair for pair in self._layers if part in pair[0].columns.parts)
        return self._spread(layer.sizes(part), rows)

    def digests(self, part: str) -> np.ndarray:
        """Return (N,) of 16 bytes each: the digest of each sample's member ``part``, zeros where it is absent."""
        layer, rows = next(pair for pair in self._layers if part in pair[0].columns.parts)
        return self._spread(layer.digests(part), rows)

    def prefetch(self, positions: np.ndarray) -> None:
        """Say which samples will be read next, and in which order; returns at once.

        Shards that are not on this host are fetched in the background, in the order in which they are
        needed. Another call replaces the plan.

        Parameters
        ----------
        positions : ndarray
            (M,) positions in the order of reading; those that other ranks read may be among them.
        """
        positions = np.asarray(positions, np.int64)
        for layer, rows in self._layers:
            own = positions if rows is None else rows[positions]
            layer.prefetch(own[own >= 0])

    def expected_members(self, shard: int) -> list[str]:
        """Return the names of the tar members of a shard, in order, as its index gives them."""
        return self._base.expected_members(shard)

    @property
    def _layers(self) -> list[tuple[Layer, np.ndarray | None]]:
        return [(self._base, None), *self._overlays]

    def _spread(self, values: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        """Return what a layer says of its own samples for those of the base, 0 where it lacks them."""
        if rows is None:
            return values
        column = np.zeros(len(self), values.dtype)
        column[rows >= 0] = values[rows[rows >= 0]]
        return column

    def _open(self, names: Collection[str]) -> None:
        for name in names:
            self._check(name)
        self.modalities: dict[str, ModalitySpec] = {name: self.manifest.modalities[name] for name in names}
        self._base = self._base.select(names)
        self._overlays = [(layer.select(names), rows) for layer, rows in self._overlays]

    def _check(self, modality: str) -> None:
        known = self.manifest.modalities
        if modality not in known:
            why = suggest(modality, known)
            raise DataError(f"the data set has no modality '{modality}'", where=self.location, why=why)
