"""Seconds of a step on many ranks, by term."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from launch.estimates.cluster import Cluster
from launch.estimates.collectives import gathering, ring_latency, seconds, sum_latency, summing
from launch.estimates.traffic import exchanges, reducing
from launch.estimates.work import FLOAT, Work, slowest


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step by term.

    Attributes
    ----------
    compute : float
        What was measured on one rank: data, forward, backward, loss, and what does not get less with more ranks.
    optimizer : float
        Of a rank's part of the parameters, from stage 1 on.
    loss : float
        Of a rank's rows against the columns of the other ranks.
    gather : float
        Embeddings and their gradients.
    exchange : float
        Gradients and weights, as far as they do not hide behind the passes.
    latency : float
        Of all messages.
    slowest : float
        Waiting for the slowest rank.
    reading : float
        What the storage cannot give in that time.
    checkpoint : float
        A save divided by the steps between two.
    """

    compute: float
    optimizer: float
    loss: float
    gather: float
    exchange: float
    latency: float
    slowest: float
    reading: float
    checkpoint: float

    @property
    def total(self) -> float:
        """Sum of all."""
        return sum(asdict(self).values())

    @property
    def bound(self) -> str:
        """What costs most beside computing."""
        costs = {name: value for name, value in asdict(self).items() if name not in ("compute", "optimizer")}
        return max(costs, key=lambda name: costs[name]) if max(costs.values()) > 0 else "compute"


def step_time(work: Work, cluster: Cluster, ranks: int, *, cores: int = 0, data: float = 0.0) -> StepTime:
    """Return the seconds of a step on ``ranks`` ranks with equal rows each.

    Parameters
    ----------
    work, cluster
        The constants.
    ranks : int
        W.
    cores : int
        Of a node, where ranks compute on them: at most so many are busy at once. 0: ranks have accelerators.
    data : float
        Bytes of the data set, for nodes that may hold a copy; 0: all is read from the shared storage.
    """
    per_node, nodes = cluster.places(ranks)
    crowd = max(1.0, per_node * work.busy / cores) if cores else 1.0
    spent, others = work.spent, (ranks - 1) * work.rows
    optimizer = spent.optimizer / (ranks if work.stage else 1)
    terms = {
        "compute": crowd * (spent.total - spent.optimizer),
        "optimizer": crowd * optimizer,
        "loss": crowd * work.loss_per_column * others,
        "gather": _gather_time(work, cluster, ranks),
        "exchange": _exchange_time(work, cluster, ranks),
        "latency": _latency(work, cluster, ranks),
        "slowest": crowd * work.spread * slowest(ranks),
    }
    read = work.rows * ranks * work.sample / read_rate(cluster, nodes, data=data)
    reading = max(0.0, read - sum(terms.values()))
    checkpoint = checkpoint_time(work, cluster, ranks) / work.checkpoint_every
    return StepTime(**terms, reading=reading, checkpoint=checkpoint)


def efficiency(work: Work, cluster: Cluster, ranks: int, *, cores: int = 0, data: float = 0.0) -> float:
    """Return the weak-scaling efficiency: time of one rank alone over that of ``ranks`` ranks, equal rows a rank."""
    alone, together = (step_time(work, cluster, count, cores=cores, data=data).total for count in (1, ranks))
    return alone / together


def read_rate(cluster: Cluster, nodes: int, *, data: float = 0.0) -> float:
    """Return the bytes a second that can be read by all nodes: from a copy on each, where they hold one."""
    if cached(cluster, data) and cluster.cache:
        return nodes * cluster.cache.read
    return min(cluster.storage.read, nodes * cluster.storage.read_per_node)


def cached(cluster: Cluster, data: float) -> bool:
    """Say whether a node holds a copy of the data set: all of it, since each epoch shuffles over all nodes."""
    return cluster.cache is not None and 0 < data <= cluster.cache.capacity


def checkpoint_time(work: Work, cluster: Cluster, ranks: int) -> float:
    """Return the seconds of a save: as the storage takes all of it, or its node what the first rank writes alone."""
    _, nodes = cluster.places(ranks)
    storage = cluster.storage
    states = (12 if work.stage else 8) * work.trained
    copies = work.checkpoint - states
    first = {0: work.checkpoint, 3: work.checkpoint / ranks}.get(work.stage, copies + states / ranks)
    together = work.checkpoint / min(storage.write, nodes * storage.write_per_node)
    return max(together, first / storage.write_per_node)


def _gather_time(work: Work, cluster: Cluster, ranks: int) -> float:
    part = work.rows * work.embeddings * (work.dim + 1) * FLOAT
    return seconds(gathering(2 * part + 8, ranks, cluster), cluster)


def _exchange_time(work: Work, cluster: Cluster, ranks: int) -> float:
    """Return the seconds of gradients and weights that no pass hides.

    With ``bucket``, gradients travel in buckets during the backward pass, all but the last of them (Li et al. 2020,
    arXiv 2006.15704, section 4.2.3), and at stage 3 weights come ahead of the layers that need them. What hides them is
    the pass that they belong to, a micro-batch's, and not those that exchange nothing.
    """
    whole = seconds(summing(work.trained * FLOAT, ranks, cluster), cluster) / 2
    gradients, weights = (times * whole for times in exchanges(work))
    if not work.bucket:
        return gradients + weights
    last = gradients / -(-work.trained // work.bucket)
    backward = work.spent.backward
    if work.stage == 3:
        return max(last, gradients + weights - backward - work.spent.forward)
    return max(last, gradients - reducing(work) * backward / work.pieces) + weights


def _latency(work: Work, cluster: Cluster, ranks: int) -> float:
    if ranks == 1:
        return 0.0
    gradients, weights = exchanges(work)
    # what hides does so with its messages, but for the last bucket
    buckets = 1 if work.bucket else -(-work.trained // work.buffers.bucket)
    ring, total = ring_latency(ranks, cluster), sum_latency(ranks, cluster)
    # sizes, embeddings, their gradients; logs
    found = 3 * ring + total
    found += weights * ring
    # sums are two halves
    return found + buckets * (gradients * ring if work.stage == 3 else gradients / 2 * total)
