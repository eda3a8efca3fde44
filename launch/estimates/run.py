"""The time of a whole run, from what was measured on one rank of this host."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from launch.estimates.cluster import Accelerator, Cluster, Link, Storage, load_cluster
from launch.estimates.step import step_time
from launch.estimates.work import Work

# what a median of n samples varies by, in units of their standard deviation over sqrt(n) (normal: sqrt(pi / 2))
OF_A_MEDIAN = math.sqrt(math.pi / 2)
# links between hosts that nobody has measured
ASSUMED = "ethernet-100g"
ENDLESS = "1 PB/s"


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """Seconds of a run.

    Attributes
    ----------
    step, error : float
        Of a step, and by how much its median may be wrong: one standard deviation.
    steps, evaluations, checkpoints, start : float
        All steps, all evaluations, all checkpoints, and what comes before the first step.
    """

    step: float
    error: float
    steps: float
    evaluations: float
    checkpoints: float
    start: float

    @property
    def total(self) -> float:
        """Of the whole run."""
        return self.steps + self.evaluations + self.checkpoints + self.start

    @property
    def total_error(self) -> float:
        """By how much the steps alone may be wrong."""
        return self.steps * self.error / self.step

    def as_table(self) -> dict[str, float]:
        """Return plain JSON values."""
        return {**asdict(self), "total": self.total, "total_error": self.total_error}


def this_host(work: Work, link: Link | None, *, ranks: int, hosts: int) -> Cluster:
    """Return the cluster that a run's hosts make: links as measured within one, as assumed between several.

    Between hosts the ranks of one share its adapter, however many they are.
    Storage gives what it gave in the measured steps, and takes a checkpoint as it took one.
    """
    assumed = load_cluster(ASSUMED)
    slow = assumed.per_node * assumed.between.bandwidth / ranks
    # what ranks of one host do not reach those of two do not either
    slow = min(link.bandwidth, slow) if link else slow
    link = link or assumed.within
    between = Link(latency=f"{assumed.between.latency!r} s", bandwidth=f"{slow!r} B/s")
    write = f"{max(1.0, work.checkpoint / max(work.save, 1e-3))!r} B/s"
    return Cluster(
        name=f"{hosts} hosts of {ranks}",
        per_node=ranks,
        accelerator=Accelerator(name=work.device, memory="1 TB", peak="1 TFLOP/s", achieved=1.0),
        within=Link(latency=f"{link.latency!r} s", bandwidth=f"{max(link.bandwidth, slow)!r} B/s"),
        between=between,
        storage=Storage(read=ENDLESS, write=write, read_per_node=ENDLESS, write_per_node=write),
    )


def run_time(work: Work, cluster: Cluster, world: int, *, cores: int) -> RunTime:
    """Return the time of the recipe's run on ``world`` ranks; ``cores``: of a host, 0 with accelerators."""
    step = step_time(work, cluster, world, cores=cores)
    alone = step.total - step.checkpoint
    crowd = max(1.0, cluster.places(world)[0] * work.busy / cores) if cores else 1.0
    error = crowd * OF_A_MEDIAN * work.spread / math.sqrt(max(1, work.steps))
    saves = -(-work.total_steps // work.checkpoint_every)
    return RunTime(
        step=alone,
        error=error,
        steps=work.total_steps * alone,
        evaluations=work.evaluations * crowd * work.evaluate * math.ceil(work.validation / world),
        checkpoints=saves * work.save,
        start=work.start,
    )
