"""The children of `launch.calibrate.measure_link`: two ranks that gather small and large messages.

python -m launch.estimates.links FOLDER
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SMALL, LARGE = 64, 16 << 20


def main(folder: Path) -> None:
    """Join the other rank, measure, and write ``measured.json``."""
    import torch
    import torch.distributed as dist

    from launch.calibrate import FOUND, end_with_the_parent

    end_with_the_parent(folder)
    several = torch.cuda.device_count() > 1
    dist.init_process_group("nccl" if several else "gloo")
    device = torch.device("cuda", dist.get_rank()) if several else torch.device("cpu")
    found = link(device)
    if dist.get_rank() == 0:
        (folder / FOUND).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def link(device: torch.device | str = "cpu") -> dict[str, float]:
    """Return seconds of a message and bytes a second that a rank sends, of all-gathers on this process group.

    W ranks pass W - 1 messages of n bytes each one after the other: t(n) = (W - 1) (latency + n / bandwidth).
    """
    import torch
    import torch.distributed as dist

    from pretrain.gather import all_gather

    world = dist.get_world_size()

    def seconds(size: int, repeats: int) -> float:
        mine = torch.zeros(size // 4, device=device)
        everything = torch.zeros(world * len(mine), device=device)
        times = []
        for _ in range(repeats + 2):
            dist.barrier()
            began = time.perf_counter()
            all_gather(everything, mine)
            if mine.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times[2:])

    small, large = seconds(SMALL, 50), seconds(LARGE, 7)
    return {"latency": small / (world - 1), "bandwidth": (world - 1) * LARGE / max(large - small, 1e-9)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
