"""Where the chunks of a build are computed: in this process, in local processes, or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from shards.errors import ConfigError, DataError

J = TypeVar("J")
R = TypeVar("R")
CONNECT_SECONDS = 30
AGAIN = "the same command goes on from the shards that are finished"


def compute(
    function: Callable[[J], R], jobs: Iterable[J], *, workers: int = 1, scheduler: str | None = None
) -> Iterator[R]:
    """Yield ``function(job)`` of every job as each is ready, in any order.

    Jobs are taken from the iterable as workers become free, so a long source is never held in memory.

    Parameters
    ----------
    function, jobs : callable, iterable
        Both are sent to other processes.
    workers : int
        Local processes; 1 computes here.
    scheduler : str, optional
        Address of a Dask scheduler (``tcp://host:8786``), whose workers compute instead.

    Raises
    ------
    DataError
        Where a worker dies.
    ConfigError
        Where the scheduler cannot be reached.
    """
    if scheduler is not None:
        return _on_cluster(function, jobs, scheduler)
    if workers <= 1:
        return map(function, jobs)
    return _in_processes(function, jobs, workers)


def _in_processes(function: Callable[[J], R], jobs: Iterable[J], workers: int) -> Iterator[R]:
    # spawn: a forked child of a process that has threads may hang
    context = multiprocessing.get_context("spawn")
    remaining, pending = iter(jobs), set[Future[R]]()
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        while True:
            while len(pending) < workers + 1 and (job := next(remaining, None)) is not None:
                pending.add(pool.submit(function, job))
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise DataError("a process of the build died", why="out of memory, or killed", do=AGAIN) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _on_cluster(function: Callable[[J], R], jobs: Iterable[J], scheduler: str) -> Iterator[R]:
    try:
        from distributed import Client, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise ConfigError(
            "builds on a Dask cluster need Dask", where="--scheduler", do="pip install 'matloom[dask]'"
        ) from None
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise ConfigError("the Dask scheduler cannot be reached", where=scheduler, why=str(error)) from None
    with client:
        remaining = iter(jobs)
        # one more than there are threads keeps each of them busy while its result travels
        room = sum(client.nthreads().values()) + 1
        first = [client.submit(function, job, pure=False) for _, job in zip(range(room), remaining, strict=False)]
        running = as_completed(first)
        try:
            for future in running:
                yield future.result()
                if (job := next(remaining, None)) is not None:
                    running.add(client.submit(function, job, pure=False))
        except KilledWorker as error:
            raise DataError(
                "a worker of the cluster died repeatedly", where=scheduler, why=str(error), do=AGAIN
            ) from None
