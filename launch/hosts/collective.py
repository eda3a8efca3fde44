"""A process group of one rank a host that adds up tensors for about a second: ``python -m launch.hosts.collective``.

What the ranks of a run will do can so be seen to work, and how fast, before they start.
"""

from __future__ import annotations

import os
import statistics
import time
from datetime import timedelta
from typing import Any

from launch.hosts.orders import serve

# fp32: large enough for bandwidth to show, small enough for 1 Gbit/s within a second
ELEMENTS = 1 << 20
SECONDS = 1.0
ROUNDS = 20


class Member:
    """The rank of this host."""

    def __init__(self) -> None:
        self.store: Any = None
        self.rank = self.world = 0

    def come(
        self, rank: int, world: int, address: str, port: int, timeout_s: float, environment: dict[str, str]
    ) -> list[int]:
        """Meet the others; returns those who have not come within the time, on rank 0."""
        os.environ.update(environment)
        import torch.distributed as dist

        from launch.network import interface_towards

        # as the ranks have it: gloo would take the address that this host's own name stands for, often loopback
        if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_towards(address)):
            os.environ["GLOO_SOCKET_IFNAME"] = interface
        self.rank, self.world = rank, world
        patience = timedelta(seconds=timeout_s)
        self.store = dist.TCPStore(address, port, world, rank == 0, patience, wait_for_workers=False)
        self.store.set(f"here-{rank}", "1")
        deadline, absent = time.monotonic() + timeout_s, set(range(world) if rank == 0 else ())
        while absent and time.monotonic() < deadline:
            absent = {other for other in absent if not self.store.check([f"here-{other}"])}
            time.sleep(0.02)
        return sorted(absent)

    def reduce(self, slot: int | None, timeout_s: float) -> dict[str, float]:
        """Add up with the others.

        Parameters
        ----------
        slot : int or None
            Number of the accelerator (nccl); None: on the CPU (gloo).
        timeout_s : float
            What one sum may take.

        Returns
        -------
        dict
            ``bytes_per_s``: what passes through this host's network, 2 (n - 1) / n of the tensor a sum ("bus
            bandwidth" of NVIDIA's nccl-tests, PERFORMANCE.md); ``latency_s``: of the sum of one number.
        """
        import torch
        import torch.distributed as dist

        device = torch.device("cpu" if slot is None else f"cuda:{slot}")
        if slot is not None:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "gloo" if slot is None else "nccl",
            store=dist.PrefixStore("preflight", self.store),
            rank=self.rank,
            world_size=self.world,
            timeout=timedelta(seconds=timeout_s),
        )

        def seconds(x: torch.Tensor) -> float:
            began = time.perf_counter()
            dist.all_reduce(x)
            if slot is not None:
                torch.cuda.synchronize()
            return time.perf_counter() - began

        large, one = torch.ones(ELEMENTS, device=device), torch.ones(1, device=device)
        seconds(large)
        if not bool((large == self.world).all()):
            raise RuntimeError(f"the sum of ones over {self.world} hosts is {large.unique().tolist()[:3]}")
        # all do as many rounds as the slowest can
        probe = torch.tensor([seconds(one), seconds(large.fill_(1.0))], device=device)
        dist.all_reduce(probe, dist.ReduceOp.MAX)
        small_s, large_s = (max(value, 1e-6) for value in probe.tolist())
        latency = statistics.median(seconds(one) for _ in range(_rounds(small_s)))
        taken = statistics.median(seconds(large.fill_(1.0)) for _ in range(_rounds(large_s)))
        dist.destroy_process_group()
        passing = 2 * (self.world - 1) / self.world * large.numel() * large.element_size()
        return {"bytes_per_s": passing / taken, "latency_s": latency}


def _rounds(seconds: float) -> int:
    return max(1, min(ROUNDS, int(SECONDS / 2 / seconds)))


def main() -> None:
    """Take orders."""
    member = Member()
    serve({"come": member.come, "reduce": member.reduce})


if __name__ == "__main__":
    main()
