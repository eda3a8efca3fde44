"""What one host finds of itself before a run: ``python -m launch.hosts.examine``, which takes orders; see `orders`."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import psutil

from launch.hosts.facts import everything
from launch.hosts.orders import serve

ECHOES = 3


class Door:
    """A port of this host on which it can be found out who reaches it.

    Each connection gets the token, and then back every byte that it sends.
    """

    def __init__(self) -> None:
        self.server: socket.socket | None = None

    def open(self, port: int, token: str) -> int:
        """Listen on a port, any free one for 0, and return which it is.

        Raises
        ------
        OSError
            Where it is taken; says by whom, where that can be seen.
        """
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            self.server = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
        except OSError as error:
            raise OSError(f"{os.strerror(error.errno or 0)}{_holder(port)}") from None
        threading.Thread(target=self._welcome, args=(self.server, token.encode()), daemon=True).start()
        return int(self.server.getsockname()[1])

    def close(self) -> None:
        """Stop listening."""
        if self.server is not None:
            # wakes the thread that accepts
            with suppress(OSError):
                self.server.shutdown(socket.SHUT_RDWR)
            self.server.close()

    def _welcome(self, server: socket.socket, token: bytes) -> None:
        with suppress(OSError):
            while True:
                guest, _ = server.accept()
                threading.Thread(target=_echo, args=(guest, token), daemon=True).start()


def reach(address: str, port: int, token: str, timeout_s: float) -> float:
    """Connect to a `Door` and return the time to it and back in seconds.

    Raises
    ------
    OSError
        Where there is no connection, or something else answers.
    """
    with socket.create_connection((address, port), timeout=timeout_s) as guest:
        guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _exactly(guest, len(token)) != token.encode():
            raise OSError("something else answers there: the address is that of another host")
        times = []
        for _ in range(ECHOES):
            began = time.perf_counter()
            guest.sendall(b"?")
            _exactly(guest, 1)
            times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Take orders."""
    door = Door()
    orders: dict[str, Any] = {
        "examine": everything,
        "clock": time.time,
        "open": door.open,
        "close": door.close,
        "reach": reach,
    }
    serve(orders)


def _echo(guest: socket.socket, token: bytes) -> None:
    with suppress(OSError), guest:
        guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        guest.sendall(token)
        while data := guest.recv(64):
            guest.sendall(data)


def _exactly(guest: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := guest.recv(count - len(data))):
        data += more
    return data


def _holder(port: int) -> str:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f", by {process.name()} (process {process.pid}, user {process.username()})"
    return ""


if __name__ == "__main__":
    main()
