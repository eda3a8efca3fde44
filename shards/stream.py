"""Streaming batches: the order, the reader and collation, prefetched by a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from shards.augment import Augmenter
from shards.batch import Batch, collate
from shards.order import epoch_order, rank_slice, step_slice, steps_per_epoch
from shards.reader import Dataset


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
        Seed of the order.
    rank, world : int
        This rank and the number of ranks.
    shuffle : bool
        False visits the positions as given, in evaluation.
    augmenter : Augmenter, optional
        What happens to each sample between reading and collation.
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
        augmenter: Augmenter | None = None,
        label_names: Sequence[str] = (),
        ahead: int = 2,
    ) -> None:
        self.dataset, self.positions, self.batch_size = dataset, positions, batch_size
        self.seed, self.rank, self.world, self.shuffle = seed, rank, world, shuffle
        self.augmenter, self.label_names, self.ahead = augmenter, tuple(label_names), ahead
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
        samples = [self.dataset[int(position)] for position in part]
        if self.augmenter is not None:
            samples = [self.augmenter(sample, epoch) for sample in samples]
        return collate(samples, self.dataset.modalities, self.label_names)
