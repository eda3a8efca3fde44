"""Constants that can be worked out by hand."""

from __future__ import annotations

from launch.estimates.cluster import Accelerator, Cache, Cluster, Link, Storage
from launch.estimates.work import Spent, Work

SPENT = Spent(data=0.01, forward=0.03, backward=0.05, loss=0.002, optimizer=0.006, rest=0.002)
WORK = Work(
    name="toy", device="cpu", rows=6, embeddings=3, dim=5, trained=437, weights=1748, activations=1000, sample=4000,
    spent=SPENT, loss_per_column=1e-6, operations=1e9, checkpoint_every=100, epochs=2,
)  # fmt: skip


def cluster(**changes: object) -> Cluster:
    usual = {
        "name": "toy",
        "per_node": 8,
        "accelerator": Accelerator(name="A100", memory="80 GB", peak="312 TFLOP/s", achieved=0.5),
        "within": Link(latency="1 us", bandwidth="100 GB/s"),
        "between": Link(latency="5 us", bandwidth="20 GB/s"),
        "storage": Storage(read="10 GB/s", write="10 GB/s", read_per_node="2 GB/s", write_per_node="1 GB/s"),
        "cache": Cache(capacity="1 TB", read="4 GB/s"),
    }
    return Cluster(**{**usual, **changes})
