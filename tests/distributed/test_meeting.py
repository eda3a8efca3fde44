"""Ranks that cannot meet end at once, and say where."""

from __future__ import annotations

import os
import socket

from tests.distributed.ranks import apart


def meets_at(port: int) -> str:
    from pretrain.engine import start_process_group
    from shards.errors import HostError

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        start_process_group()
    except HostError as error:
        return str(error)
    return "met"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket(socket.AF_INET6) as other:
        # of both families, as another run's store has it
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        told = apart(meets_at, port)
    assert f"rank 0 of 1 cannot meet the others at 127.0.0.1:{port}" in told
    assert socket.gethostname() in told and "--master_port" in told
    assert "already in use" in told or "EADDRINUSE" in told
    assert apart(meets_at, port) == "met"
