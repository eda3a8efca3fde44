"""A model of a pretraining step on many ranks: bytes and seconds by term, from measured constants.

Bytes are those of rings, which is what gloo and NCCL do with large messages: of W ranks each sends ``(W - 1) n`` bytes
to gather (or reduce and scatter) parts of n bytes, and ``2 (W - 1) / W N`` to sum N bytes. Messages follow each other
``W - 1`` deep in a ring and ``2 log2 W`` deep in the trees that sum. Rings run along nodes, so that the slowest link on
the way counts.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

FLOAT = 4
# products of a chunked contrastive loss a pair: two directions, each with its logits made twice and two gradients
LOGIT_PRODUCTS = 8


@dataclass(frozen=True, kw_only=True)
class Link:
    """A way between two ranks.

    Attributes
    ----------
    latency_s : float
        Of one message.
    bandwidth : float
        Bytes a second that a rank sends.
    """

    latency_s: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the ranks run on.

    Attributes
    ----------
    ranks_per_node : int
        Accelerators of a node.
    within, between : Link
        Between ranks of one node, and of two.
    storage_write : float
        Bytes a second that the shared storage takes from all ranks together.
    storage_per_node : float
        And from one node.
    """

    ranks_per_node: int
    within: Link
    between: Link
    storage_write: float
    storage_per_node: float

    def link(self, ranks: int) -> Link:
        """Return the slowest link of a ring over ``ranks`` ranks."""
        return self.within if ranks <= self.ranks_per_node else self.between


@dataclass(frozen=True, kw_only=True)
class Work:
    """One rank's work in a step.

    Attributes
    ----------
    rows : int
        Samples of a rank.
    embeddings, dim : int
        Embeddings a sample and their width.
    pairs : int
        Pairs that the objective compares.
    parameters : int
        That learn.
    stage : int
        Of ZeRO.
    compute_s : float
        Seconds of encoders, forward and backward, and of the optimizer, on one rank alone.
    logits_per_s : float
        Operations a second in the loss's matrix products.
    checkpoint_every : int
        Steps between two checkpoints.
    overlap : float
        Share of the gradients' exchange that hides behind the backward pass.
    """

    rows: int
    embeddings: int
    dim: int
    pairs: int
    parameters: int
    stage: int
    compute_s: float
    logits_per_s: float
    checkpoint_every: int
    overlap: float = 0.0

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and AdamW's states, all ranks together."""
        return (FLOAT + 3 * FLOAT) * self.parameters


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that a rank sends in a step, and messages, by term.

    Attributes
    ----------
    sizes : int
        How many rows the ranks have.
    gather, scatter : int
        Embeddings with presence flags forward, their gradients backward.
    gradients, weights : int
        Of ZeRO: gradients are summed (stages 0 to 2 sum all of them, stage 3 its part), weights gathered (stages 1
        and 2 after the step, stage 3 forward and backward).
    logs : int
        Loss and logged values.
    """

    sizes: int
    gather: int
    scatter: int
    gradients: int
    weights: int
    logs: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(asdict(self).values())


def traffic(work: Work, ranks: int, *, logged: int = 8) -> Traffic:
    """Return the bytes that each of ``ranks`` ranks sends in a step."""
    others = ranks - 1
    part = work.rows * work.embeddings * (work.dim + 1) * FLOAT
    states = work.parameters * FLOAT
    whole = others * states // ranks
    gradients, weights = {0: (2, 0), 1: (2, 1), 2: (2, 1), 3: (1, 2)}[work.stage]
    return Traffic(
        sizes=others * 8,
        gather=others * part,
        scatter=others * part,
        gradients=gradients * whole,
        weights=weights * whole,
        logs=2 * others * logged * FLOAT // ranks,
    )


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step by term.

    Attributes
    ----------
    compute, loss, gather, gradients, weights, latency, checkpoint : float
        ``loss``: a rank's rows against all columns; ``gather``: embeddings and their gradients; ``latency``: of all
        messages; ``checkpoint``: a save divided by the steps between two.
    """

    compute: float
    loss: float
    gather: float
    gradients: float
    weights: float
    latency: float
    checkpoint: float

    @property
    def total(self) -> float:
        """Sum of all."""
        return sum(asdict(self).values())


def step_time(work: Work, cluster: Cluster, ranks: int) -> StepTime:
    """Return the seconds of a step on ``ranks`` ranks."""
    sent, link = traffic(work, ranks), cluster.link(ranks)
    nodes = -(-ranks // cluster.ranks_per_node)
    operations = 2 * LOGIT_PRODUCTS * work.rows * work.rows * ranks * work.dim * work.pairs
    rings = (
        3 + {0: 0, 1: 1, 2: 1, 3: 3}[work.stage]
    )  # sizes, embeddings, their gradients; weights, partitioned gradients
    sums = 1 + {0: 1, 1: 1, 2: 1, 3: 0}[work.stage]  # logs; gradients
    deep = rings * (ranks - 1) + sums * 2 * math.ceil(math.log2(ranks))
    storage = min(cluster.storage_write, nodes * cluster.storage_per_node)
    return StepTime(
        compute=work.compute_s,
        loss=operations / work.logits_per_s,
        gather=(sent.gather + sent.scatter + sent.sizes) / link.bandwidth,
        gradients=(1 - work.overlap) * sent.gradients / link.bandwidth,
        weights=sent.weights / link.bandwidth,
        latency=deep * link.latency_s,
        checkpoint=work.checkpoint_bytes / storage / work.checkpoint_every,
    )


def efficiency(work: Work, cluster: Cluster, ranks: int) -> float:
    """Return the weak-scaling efficiency: time of one rank alone over that of ``ranks`` ranks, equal rows a rank."""
    return step_time(work, cluster, 1).total / step_time(work, cluster, ranks).total
