"""Samples without files, for tests of orders and streams: every read is counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from shards.schema import FieldSpec, ModalitySpec, Sample


class Memory:
    """A data set in memory: modality ``m`` has a ragged axis, sample i has the number i in its label ``n``."""

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        present: dict[str, np.ndarray] | None = None,
        sizes: np.ndarray | None = None,
        labels: Sequence[dict[str, float]] | None = None,
        tags: Sequence[dict[str, str]] | None = None,
    ) -> None:
        self.shard_sizes = list(shard_sizes)
        count = sum(shard_sizes)
        self.present = {"m": np.ones(count, dtype=bool)} if present is None else present
        self.sizes = np.ones(count, dtype=np.int64) if sizes is None else sizes
        self.labels, self.tags = labels or [{} for _ in range(count)], tags or [{} for _ in range(count)]
        field = FieldSpec(dtype="int64", shape=("atoms",))
        self.modalities = {name: ModalitySpec(name=name, kind="sequence", fields={"x": field}) for name in self.present}
        self.read: list[int] = []
        self.prefetched: list[np.ndarray] = []
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def __getitem__(self, position: int) -> Sample:
        with self.lock:
            self.read.append(position)
        arrays = {
            name: {"x": np.full(self.sizes[position], position)} for name, has in self.present.items() if has[position]
        }
        return Sample(id=str(position), arrays=arrays, labels=self.labels[position], tags=self.tags[position])

    def presence(self, modality: str) -> np.ndarray:
        return self.present[modality]

    def lengths(self, axis: str) -> np.ndarray:
        return np.where(self.present[axis.partition(".")[0]], self.sizes, 0)

    def prefetch(self, positions: np.ndarray) -> None:
        self.prefetched.append(positions)

    def select(self, modalities: Sequence[str]) -> Memory:
        return self
