"""Seconds of a collective over nodes of several ranks.

Large messages go along rings within the nodes and rings between them. A sum of N bytes over n nodes of g ranks is a
reduce-scatter within each node, a sum of N / g between the g-th ranks of all nodes, each over its own adapter, and an
all-gather within each node (the hierarchy of Jia et al. 2018, arXiv 1807.11205, section 3.3). It sends as many bytes as
one ring over all W = g n ranks: 2 N / g ((g - 1) + (n - 1) / n) = 2 N (W - 1) / W.

Latency is that of NCCL's own model (ncclTopoTuneModel, src/graph/tuning.cc): a ring that gathers passes W - 1 messages,
n of them between nodes; one that sums passes twice as many, or a tree does it in 2 (g - 1) steps within nodes and
2 log2 n between them, whichever is quicker.
"""

from __future__ import annotations

import math

from launch.estimates.cluster import Cluster


def gathering(part: float, ranks: int, cluster: Cluster) -> tuple[float, float]:
    """Return the bytes that a rank sends within its node and between nodes, to gather parts of ``part`` bytes."""
    per_node, nodes = cluster.places(ranks)
    return (per_node - 1) * nodes * part, (nodes - 1) * part


def summing(whole: float, ranks: int, cluster: Cluster) -> tuple[float, float]:
    """Return the bytes that a rank sends within its node and between nodes, to sum ``whole`` bytes."""
    within, between = gathering(whole / ranks, ranks, cluster)
    return 2 * within, 2 * between


def seconds(sent: tuple[float, float], cluster: Cluster) -> float:
    """Return the seconds of bytes sent within a node and between nodes, one after the other."""
    within, between = sent
    return within / cluster.within.bandwidth + between / cluster.between.bandwidth


def ring_latency(ranks: int, cluster: Cluster) -> float:
    """Return the seconds of the W - 1 messages of a ring that gathers, or reduces and scatters."""
    _, nodes = cluster.places(ranks)
    crossings = nodes if nodes > 1 else 0
    return (ranks - 1 - crossings) * cluster.within.latency + crossings * cluster.between.latency


def sum_latency(ranks: int, cluster: Cluster) -> float:
    """Return the seconds of the messages of a sum: twice a ring, or a tree."""
    per_node, nodes = cluster.places(ranks)
    tree = 2 * (math.ceil(per_node) - 1) * cluster.within.latency
    tree += 2 * math.ceil(math.log2(nodes)) * cluster.between.latency
    return min(2 * ring_latency(ranks, cluster), tree)
