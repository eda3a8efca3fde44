"""Streaming batches: the order, the reader and collation, prepared ahead by threads."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from shards.batch import Batch, collate
from shards.budget import Budget, balanced_slice, pack
from shards.order import rank_slice, steps_per_epoch
from shards.orders.base import Order, Samples
from shards.orders.shuffled import Shuffled
from shards.schema import Sample


class BatchStream:
    """The batches of one rank, from any (epoch, step) on at no cost.

    The global batches are the same for any number of ranks and workers, and every rank has the same number of steps.

    Parameters
    ----------
    dataset : Dataset or Mixture
        Source of the samples.
    positions : ndarray
        (N,) samples to visit.
    batch_size : int
        GLOBAL batch size; with a budget the largest one.
    seed : int
        Seed of the order.
    rank, world : int
        This rank and the number of ranks.
    order : Order, optional
        Which samples an epoch visits, in which sequence. Default: each once, shuffled.
    budget : Budget, optional
        Cut the batches by their total size too; see `shards.budget`.
    augmenter : callable, optional
        ``(sample, epoch, view) -> sample``: what happens to each sample between reading and collation.
    views : int
        2: every batch has a `twin`, the same samples augmented a second time.
    label_names : sequence of str
        Labels to collate.
    workers : int
        Threads that prepare batches ahead, two each; 0 prepares each batch when it is asked for.
    """

    def __init__(
        self,
        dataset: Samples,
        positions: np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        order: Order | None = None,
        budget: Budget | None = None,
        augmenter: Callable[[Sample, int, int], Sample] | None = None,
        views: int = 1,
        label_names: Sequence[str] = (),
        workers: int = 1,
    ) -> None:
        self.dataset, self.positions, self.batch_size = dataset, positions, batch_size
        self.rank, self.world, self.workers = rank, world, workers
        self.augmenter, self.views, self.label_names = augmenter, views, tuple(label_names)
        order = order or Shuffled()
        self._order = order.prepare(dataset, positions, seed=seed)
        self._samples = order.length(len(positions))
        self._budget = budget
        self._sizes = None if budget is None else dataset.lengths(budget.axis)
        # first step of each epoch that has been looked at; batches of a fixed size need no look
        self._firsts = [0]

    @property
    def larger_than_budget(self) -> int:
        """Number of samples that exceed the budget alone; each is a batch of its own."""
        if self._budget is None or self._sizes is None:
            return 0
        return int((self._sizes[self.positions] > self._budget.max).sum())

    def steps_in(self, epoch: int) -> int:
        """Return the number of steps of an epoch; with a budget it differs from epoch to epoch."""
        if self._budget is None:
            return steps_per_epoch(self._samples, self.batch_size)
        return self._first(epoch + 1) - self._first(epoch)

    def total(self, epochs: float) -> int:
        """Return the number of steps of the first ``epochs`` epochs; a part of an epoch is rounded to whole steps."""
        whole = int(epochs)
        part = epochs - whole
        return self._first(whole) + (round(part * self.steps_in(whole)) if part else 0)

    def locate(self, step: int) -> tuple[int, int]:
        """Return the epoch that the global step (from 0) lies in, and its step within that epoch."""
        if self._budget is None:
            return divmod(step, self.steps_in(0))
        while self._firsts[-1] <= step:
            self._first(len(self._firsts))
        epoch = bisect_right(self._firsts, step) - 1
        return epoch, step - self._firsts[epoch]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of the global batches ``start``, ``start + 1``, ... of an epoch.

        A rank's part may be empty: where the last global batch has fewer samples than there are ranks, or a budget
        leaves a rank none.
        """
        order, bounds = self._plan(epoch)
        self.dataset.prefetch(order[bounds[start] :])
        batches = (order[first:last] for first, last in zip(bounds[start:-1], bounds[start + 1 :], strict=True))
        if not self.workers:
            yield from (self._batch(rows, epoch) for rows in batches)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="batches")
        try:
            pending: deque[Future[Batch]] = deque()
            for rows in batches:
                pending.append(pool.submit(self._batch, rows, epoch))
                if len(pending) > 2 * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, rows: np.ndarray, epoch: int) -> Batch:
        """Read and collate this rank's part of a global batch."""
        if self._sizes is None:
            part = rows[rank_slice(len(rows), self.rank, self.world)]
        else:
            part = rows[balanced_slice(self._sizes[rows], self.rank, self.world)]
        samples = [self.dataset[position] for position in part.tolist()]
        views = [self._collated(samples, epoch, view) for view in range(self.views)]
        return replace(views[0], twin=views[1]) if self.views == 2 else views[0]

    def _collated(self, samples: list[Sample], epoch: int, view: int) -> Batch:
        if self.augmenter is not None:
            samples = [self.augmenter(sample, epoch, view) for sample in samples]
        return collate(samples, self.dataset.modalities, self.label_names)

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of an epoch and its bounds: batch s is ``order[bounds[s]:bounds[s + 1]]``."""
        order = self._order(epoch)
        if self._budget is not None and self._sizes is not None:
            return order, pack(self._sizes[order], most=self._budget.max, batch_size=self.batch_size)
        bounds = np.arange(self.steps_in(epoch) + 1) * self.batch_size
        return order, np.minimum(bounds, len(order))

    def _first(self, epoch: int) -> int:
        """Return the global step with which an epoch begins."""
        if self._budget is None:
            return epoch * self.steps_in(epoch)
        while len(self._firsts) <= epoch:
            _, bounds = self._plan(len(self._firsts) - 1)
            self._firsts.append(self._firsts[-1] + len(bounds) - 1)
        return self._firsts[epoch]
