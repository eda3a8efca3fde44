"""Real ranks: processes on gloo that run one function and hand its results back.

They are forked from a server process that has imported what costs seconds, so that each starts at once.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from pretrain.ports import free_port

TIMEOUT_S = 300
# how ranks end whose collectives do not match: gloo kills one, or they wait for ever
OUT_OF_STEP = re.compile("the process died without a word|did not finish in time|gloo")
FIXED = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
# torch._dynamo comes with the first optimizer, torch._inductor with DeepSpeed's first ZeRO optimizer, the store of
# MLflow with the first record, matplotlib with the last
ROOT = Path(__file__).resolve().parents[2]
PRELOADED = [
    "pretrain.train",
    "finetune.compare",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "mlflow.store.tracking.sqlalchemy_store",
    "matplotlib.figure",
    # last: see there
    "tests.distributed.frozen",
]


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, and so of ranks that it starts, for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


def forking_context() -> Any:
    """The context whose processes are forked from the server, which is running."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with variables(FIXED), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


def spawn(function: Callable[..., Any], world: int, *args: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
    """Run ``function(*args)`` on ``world`` ranks and return their results, by rank.

    The environment is what a launcher sets; `pretrain.engine.start_process_group` or
    `torch.distributed.init_process_group` joins the group. The first rank that fails ends the others
    and raises here, with its number and traceback.
    """
    port = free_port()
    places = [
        {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }
        for rank in range(world)
    ]  # fmt: skip
    return _fork(places, function, args, timeout_s)


def apart(function: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S) -> Any:
    """Run ``function(*args)`` in a process of its own that is no rank, and return its result."""
    return _fork([{}], function, args, timeout_s)[0]


def _fork(
    environments: list[dict[str, str]], function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float
) -> list[Any]:
    context = forking_context()
    pipes, processes = [], []
    for environment in environments:
        mine, theirs = context.Pipe(duplex=False)
        # the server has the environment of its own start, not that of the test
        process = context.Process(target=_run, args=(theirs, {**os.environ, **FIXED, **environment}, function, args))
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        results = _collect(pipes, time.monotonic() + timeout_s)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()
    return results


def _collect(pipes: list[Any], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            silent = sorted(set(range(len(pipes))) - set(results))
            raise TimeoutError(f"ranks {silent} did not finish in time")
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                good, value = pipe.recv()
            except EOFError:
                good, value = False, "the process died without a word"
            if not good:
                raise RuntimeError(f"rank {rank} of {len(pipes)} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _run(pipe: Any, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    try:
        pipe.send((True, function(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    finally:
        pipe.close()
        # ranks that still wait for this one would keep it from ending
        os._exit(0)
