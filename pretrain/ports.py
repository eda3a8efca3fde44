"""A TCP port of this host that nobody listens on."""

from __future__ import annotations

import socket


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port that was free a moment ago: of the loopback interface, or of an address; ``""``: of all of them."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
