"""What one rank finds out, all ranks know: a failure of one is raised by all, so that nobody waits for it in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from shards.errors import CheckpointError, MatloomError

Result = TypeVar("Result")


@contextmanager
def together(what: str, *, where: object = None, do: str | None = None) -> Iterator[None]:
    """Run a block on every rank; where it fails on one of them, all raise a `CheckpointError` that names that rank.

    The block must not wait for other ranks itself. Every rank enters.
    """
    failure: str | None = None
    try:
        yield
    except Exception as error:
        failure = str(error) or type(error).__name__
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    found = [f"rank {rank}: {failure}" for rank, failure in enumerate(failures) if failure]
    if found:
        raise CheckpointError(what, where=where, why="; ".join(found), do=do)


def on_first_rank(work: Callable[[], Result]) -> Result:
    """Run ``work`` on the first rank and return its result, or raise its error, on all of them.

    The result must be something that can be pickled.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except MatloomError as error:
            outcome[1] = error
        except Exception as error:
            outcome[1] = CheckpointError("the first rank failed", why=f"{type(error).__name__}: {error}")
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
