"""The cable of a host: carries Ethernet frames between two TAP devices, late or not at all if a test wants so.

Not every kernel has the queueing discipline ``netem``; this works wherever there is ``/dev/net/tun``. Run as a process:

    python wire.py HOSTS_PID HOSTS_DEVICE OUR_DEVICE < orders

Orders are JSON lines: ``{"delay_s": 0.5, "loss": 0.3, "up": true}``. The device of the host is made in the namespaces
of the process ``HOSTS_PID``. Prints ``ready`` once both devices are there.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
FRAME = 65536


def tap(name: str, process: int | None = None) -> int:
    """Open a TAP device, in the network namespace of a process where one is given."""
    libc = ctypes.CDLL(None, use_errno=True)
    ours = os.open("/proc/self/ns/net", os.O_RDONLY)
    if process is not None and libc.setns(os.open(f"/proc/{process}/ns/net", os.O_RDONLY), CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    finally:
        libc.setns(ours, CLONE_NEWNET)
        os.close(ours)
    return device


def main() -> None:
    """Carry frames until standard input ends."""
    process, theirs, ours = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    ends = (tap(theirs, process), tap(ours))
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    luck = random.Random(0)
    orders = {"delay_s": 0.0, "loss": 0.0, "up": True}
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    print("ready", flush=True)
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select([*ends, sys.stdin], [], [], timeout)
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                return
            orders |= json.loads(line)
            print("done", flush=True)
        for end in ends:
            if end in ready:
                frame = os.read(end, FRAME)
                if orders["up"] and luck.random() >= orders["loss"]:
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + orders["delay_s"], number, other[end], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(waiting)
            try:
                os.write(end, frame)
            except OSError:
                # the device is down, as it may be: a cable loses such frames
                continue


if __name__ == "__main__":
    main()
