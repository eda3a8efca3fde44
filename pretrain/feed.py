"""The batches of a stream, handed out so that the waiting for them can be broken off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from shards.batch import Batch, collate
from shards.stream import BatchStream

# how long a rank waits for its data before it looks whether it still should
PATIENCE_S = 0.25


class Feed:
    """The batches of a stream.

    Parameters
    ----------
    stream : BatchStream
        Prepares them.
    give_up : callable
        Asked now and then while a batch does not come; True ends the waiting.
    meet : callable
        Called on all ranks before each batch of `epoch`.
    """

    def __init__(self, stream: BatchStream, give_up: Callable[[], bool], meet: Callable[[], None]) -> None:
        self.stream, self.give_up, self.meet = stream, give_up, meet

    def batches(self, step: int, stop: int) -> Iterator[tuple[Batch | None, float]]:
        """Yield the batches of the global steps ``step`` to ``stop``, each with the seconds spent waiting for it.

        None in place of the last one: it did not come, and waiting for it was given up.
        """
        while step < stop:
            epoch, start = self.stream.locate(step)
            for batch, waited in self.impatient(self.stream.epoch(epoch, start=start)):
                yield batch, waited
                if batch is None:
                    return
                step += 1

    def impatient(self, batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
        """Yield the items of an iterator, which runs in a thread of its own, and the seconds spent waiting for each."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="next batch")
        try:
            while True:
                began = time.perf_counter()
                item = thread.submit(next, batches, None)
                while not wait([item], PATIENCE_S).done:
                    if self.give_up():
                        yield None, time.perf_counter() - began
                        return
                batch = item.result()
                if batch is None:
                    return
                yield batch, time.perf_counter() - began
        finally:
            thread.submit(batches.close)  # type: ignore[attr-defined]  # in its thread, after what it is still doing
            thread.shutdown(wait=False)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch. Where waiting for one is given up, `meet` must end the loop on all ranks."""
        for batch, _ in self.impatient(self.stream.epoch(epoch)):
            self.meet()
            assert batch is not None, "the ranks go on without a batch that one of them does not have"
            yield batch

    def nothing(self) -> Batch:
        """Return a batch without samples: with it a rank whose data do not come can still meet the others."""
        empty = collate([], self.stream.dataset.modalities, self.stream.label_names)
        return replace(empty, twin=empty) if self.stream.views == 2 else empty
