"""The table of `matloom launch estimate`: what a run takes on 1 to 4,096 accelerators and with 1e5 to 1e9 materials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.estimates.cluster import Cluster
from launch.estimates.step import cached, checkpoint_time, read_rate, step_time
from launch.estimates.traffic import traffic
from launch.estimates.work import Work, host_memory, rank_memory

HOUR = 3600.0


def scaling_rows(work: Work, cluster: Cluster, gpus: Sequence[int], *, data: float = 0.0) -> list[dict[str, Any]]:
    """Return a row for each number of accelerators: step, rate, efficiency, memory, reading, checkpoint.

    Parameters
    ----------
    work, cluster
        The constants.
    gpus : sequence of int
        Numbers of ranks.
    data : float
        Bytes of the data set, for nodes that hold a copy where it fits.
    """
    alone = step_time(work, cluster, 1, data=data).total
    rows = []
    for ranks in gpus:
        step = step_time(work, cluster, ranks, data=data)
        rate = ranks * work.rows / step.total
        _, nodes = cluster.places(ranks)
        save = checkpoint_time(work, cluster, ranks)
        rows.append(
            {
                "gpus": ranks,
                "global batch": ranks * work.rows,
                "step_s": step.total,
                "samples_per_s": rate,
                "efficiency": alone / step.total,
                "sent_bytes": traffic(work, ranks).total,
                "memory_bytes": rank_memory(work, ranks),
                "host_bytes": host_memory(work, ranks),
                "memory_by_stage": [rank_memory(work, ranks, stage=stage) for stage in range(4)],
                "read_bytes_per_s": rate * work.sample,
                "readable_bytes_per_s": read_rate(cluster, nodes, data=data),
                "bound": step.bound,
                "checkpoint_s": save,
                "checkpoint_share": step.checkpoint / step.total,
            }
        )
    return rows


def training_rows(
    work: Work, cluster: Cluster, gpus: Sequence[int], materials: Sequence[int], *, epochs: int
) -> list[dict[str, Any]]:
    """Return what training for ``epochs`` epochs takes, for each number of materials and of accelerators.

    A run whose global batch is larger than the data set has one step an epoch of fewer rows: it is left out. Nodes copy
    the data set to their own disks first where that is quicker in all.
    """
    rows = []
    for samples in materials:
        data = samples * work.sample
        for ranks in gpus:
            if ranks * work.rows > samples:
                continue
            steps = epochs * -(-samples // (ranks * work.rows))
            seconds, staging = min(_spent(work, cluster, ranks, steps, data))
            rows.append(
                {
                    "materials": samples,
                    "gpus": ranks,
                    "steps": steps,
                    "data_bytes": data,
                    "staging_s": staging,
                    "hours": seconds / HOUR,
                    "gpu_hours": ranks * seconds / HOUR,
                }
            )
    return rows


def _spent(work: Work, cluster: Cluster, ranks: int, steps: int, data: float) -> list[tuple[float, float]]:
    """Return the seconds of a run, and those of copying the data to each node, without and with a copy."""
    ways = [(steps * step_time(work, cluster, ranks).total, 0.0)]
    if cached(cluster, data):
        _, nodes = cluster.places(ranks)
        copying = data / min(cluster.storage.read / nodes, cluster.storage.read_per_node)
        ways.append((steps * step_time(work, cluster, ranks, data=data).total + copying, copying))
    return ways
