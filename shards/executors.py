"""Where the chunks of a build are computed: in this process, in local processes, or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from shards.errors import ConfigError, DataError

J = TypeVar("J")
R = TypeVar("R")
CONNECT_SECONDS = 30
# jobs that wait at a scheduler beyond one a thread: an adaptive cluster starts workers for the jobs that it sees
AHEAD = 16
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
        Where a worker dies, or the scheduler.
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
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
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


def _end_with_parent() -> None:
    """Let this process end as soon as the one that started it has: a pool's process would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


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
        remaining, running = iter(jobs), as_completed()

        def top_up() -> None:
            try:
                # asked every time, as workers come and go
                threads = sum(client.nthreads().values())
            except OSError as error:
                raise _gone(scheduler, error) from None
            room = threads + AHEAD - running.count()
            running.update([client.submit(function, job, pure=False) for job in islice(remaining, max(room, 0))])

        try:
            top_up()
            for future in running:
                yield future.result()
                top_up()
        except KilledWorker as error:
            raise DataError(
                "a worker of the cluster died repeatedly", where=scheduler, why=str(error), do=AGAIN
            ) from None
        except CancelledError as error:
            raise _gone(scheduler, error) from None


def _gone(scheduler: str, error: Exception) -> DataError:
    return DataError("the Dask scheduler is gone", where=scheduler, why=repr(error), do=AGAIN)
