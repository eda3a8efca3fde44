"""Ranks that do not find each other: what torch says of it, for a user."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from shards.errors import HostError


@contextmanager
def meeting() -> Iterator[None]:
    """Turn torch's errors about ranks that do not find each other into a `HostError`."""
    try:
        yield
    except RuntimeError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise HostError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot meet the others at {place}",
            where=socket.gethostname(),
            why=str(error).partition("\n")[0],
            do="another --master_port where it is taken; else see that all ranks start, and reach the first host",
        ) from None
