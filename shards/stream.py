"""Streaming batches: the order, the reader and collation, prefetched by a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import xxhash

from shards.augment import Augment, augment
from shards.batch import Batch, collate
from shards.order import epoch_order, rank_slice, step_slice, steps_per_epoch
from shards.reader import Dataset
from shards.schema import Sample


class BatchStream:
    """The batches of one rank, from any (epoch, step) on at no cost.

    Parameters
    ----------
    dataset : Dataset
        Source of the samples.
    positions : ndarray
        (N,) samples to visit once an epoch.
    batch_size : int
        GLOBAL batch size.
    seed : int
        Seed of the order and of the augmentations.
    rank, world : int
        This rank and the number of ranks.
    shuffle : bool
        False visits the positions as given, in evaluation.
    augments : mapping of str to Augment, optional
        Augmentation of each modality; off where there is none.
    label_names : sequence of str
        Labels to collate.
    ahead : int
        Batches that are prepared in advance.
    """

    def __init__(
        self,
        dataset: Dataset,
        positions: np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        augments: Mapping[str, Augment] | None = None,
        label_names: Sequence[str] = (),
        ahead: int = 2,
    ) -> None:
        self.dataset, self.positions, self.batch_size = dataset, positions, batch_size
        self.seed, self.rank, self.world, self.shuffle = seed, rank, world, shuffle
        self.augments, self.label_names, self.ahead = dict(augments or {}), tuple(label_names), ahead
        self.steps = steps_per_epoch(len(positions), batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of the global batches ``start``, ``start + 1``, ... of an epoch.

        A rank's part may be empty where the last global batch has fewer samples than there are ranks.
        """
        order = self.positions
        if self.shuffle:
            order = epoch_order(self.positions, self.dataset.shard_sizes, seed=self.seed, epoch=epoch)
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            pending: deque[Future[Batch]] = deque()
            for step in range(start, self.steps):
                pending.append(pool.submit(self._batch, order, epoch, step))
                if len(pending) > self.ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _batch(self, order: np.ndarray, epoch: int, step: int) -> Batch:
        rows = step_slice(order, step, self.batch_size)
        part = rows[rank_slice(len(rows), self.rank, self.world)]
        samples = [self._augmented(self.dataset[int(position)], epoch) for position in part]
        return collate(samples, self.dataset.modalities, self.label_names)

    def _augmented(self, sample: Sample, epoch: int) -> Sample:
        """Apply the augmentations, a function of (seed, epoch, sample) and of nothing else."""
        if not self.augments:
            return sample
        arrays, text = dict(sample.arrays), dict(sample.text)
        for name, config in sorted(self.augments.items()):
            value = sample.value(name)
            if value is None:
                continue
            key = [self.seed, epoch, xxhash.xxh64_intdigest(f"{name}\0{sample.id}".encode())]
            value = augment(self.dataset.modalities[name], value, np.random.default_rng(key), config)
            if isinstance(value, str):
                text[name] = value
            else:
                arrays[name] = dict(value)
        return replace(sample, arrays=arrays, text=text)
