"""Published throughput of CLIP-scale training against what `launch.estimates` predicts.

    python benchmarks/published_scaling.py

Of each run only the point on fewest accelerators is taken: what a rank computes is set so that the model gives that
rate. The other points are predicted, once with links alone, and once with a spread of the ranks' step times that makes
the second point come out right. What a source does not say is marked as assumed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.estimates.cluster import Cluster, Link, load_cluster
from launch.estimates.step import step_time
from launch.estimates.work import Spent, Work

# of PyTorch's DistributedDataParallel: 25 MiB
DDP_BUCKET = 25 * 2**20 // 4
# products of a contrastive loss a pair of rows: two directions, one forward and two backward, two operations each
LOSS_OPERATIONS = 12
# operations a second in the loss: an assumption for all runs
LOSS_RATE = 50e12


@dataclass
class Run:
    """A published run on several numbers of accelerators."""

    name: str
    source: str
    cluster: Cluster
    rows: int
    parameters: float
    dim: int
    rates: dict[int, float]
    notes: list[str] = field(default_factory=list)


def nodes_of(per_node: int, *, within: str, between: str) -> Cluster:
    """Return a cluster whose storage never counts, with the latencies of the one that comes along."""
    usual = load_cluster("dgx-h100")
    return usual.model_copy(
        update={
            "per_node": per_node,
            "within": Link(latency="1.9 us", bandwidth=within),
            "between": Link(latency="4 us", bandwidth=between),
        }
    )


JUPITER = nodes_of(4, within="150 GB/s", between="200 Gb/s")
JUWELS = nodes_of(4, within="195 GB/s", between="200 Gb/s")
CLAP = "https://github.com/LAION-AI/open-clap-scaling"
NEMO = (
    "https://docs.nvidia.com/nemo-framework/user-guide/latest/multimodalmodels/visionlanguagefoundation/clip/perf.html"
)
LAION = "https://github.com/LAION-AI/scaling-laws-openclip, trained_models_info.csv"
GUESSED = "assumed: parameters, links of the nodes (4 x NDR200), PyTorch's usual buckets"
NEMO_NOTES = ["assumed: 64 rows a rank; parameters and width are those of open_clip's ViT-g-14"]
RUNS = [
    Run("CLAP HTSAT-tiny, GH200", CLAP, JUPITER, 616, 158e6, 512,
        {4: 2495, 8: 4966, 16: 9865, 32: 19572, 64: 38512, 128: 75008, 256: 146767, 512: 278833}, [GUESSED]),
    Run("CLAP HTSAT-base, GH200", CLAP, JUPITER, 416, 198e6, 512,
        {4: 2153, 8: 4244, 16: 8379, 32: 16701, 64: 32502, 128: 64691, 256: 124245, 512: 232876}, [GUESSED]),
    Run("CLIP ViT-g/14, DGX A100", NEMO, nodes_of(8, within="195 GB/s", between="25 GB/s"), 64, 1367e6, 1024,
        {8: 559, 16: 1115, 32: 2190, 64: 4407, 128: 8633}, NEMO_NOTES),
    Run("CLIP ViT-g/14, DGX H100", NEMO, nodes_of(8, within="370 GB/s", between="46 GB/s"), 64, 1367e6, 1024,
        {8: 935, 16: 1795, 32: 3502, 64: 6771, 128: 13829}, NEMO_NOTES),
    Run("CLIP ViT-B/32, A100 of JUWELS Booster", LAION, JUWELS, 256, 151e6, 512,
        {128: 108844.6, 344: 219759.0},
        ["runs on other data, with other batches; the table has 93,294 for the first and 99,289 for the second too"]),
]  # fmt: skip


def work_of(run: Run, compute: float, spread: float = 0.0) -> Work:
    """Return the work of a run: a third of what is computed is the pass forward."""
    spent = Spent(data=0, forward=compute / 3, backward=2 * compute / 3, loss=0, optimizer=0, rest=0)
    return Work(
        name=run.name, device="as published", rows=run.rows, embeddings=2, dim=run.dim, trained=int(run.parameters),
        weights=4 * run.parameters, stage=0, bucket=DDP_BUCKET, spent=spent, spread=spread, checkpoint_every=10**9,
        loss_per_column=LOSS_OPERATIONS * run.rows * run.dim / LOSS_RATE,
    )  # fmt: skip


def solved(target: float, run: Run, ranks: int, make: Callable[[float], Work]) -> float:
    """Return the constant with which the model gives a step of ``target`` seconds."""
    low, high = 0.0, target
    for _ in range(60):
        middle = (low + high) / 2
        step = step_time(make(middle), run.cluster, ranks).total
        low, high = (middle, high) if step < target else (low, middle)
    return low


def fitted(run: Run) -> list[Work]:
    """Return what makes the first point come out right with links alone, and the first two with a spread."""
    (first, rate), (second, _) = list(run.rates.items())[:2]

    def compute_for(spread: float) -> float:
        return solved(first * run.rows / rate, run, first, partial(work_of, run, spread=spread))

    compute, spread = compute_for(0.0), 0.0
    found = [work_of(run, compute)]
    if len(run.rates) > 2:
        # one asks the other for less or more: a few rounds settle it
        for _ in range(30):
            spread = solved(seconds_of(run, second), run, second, partial(work_of, run, compute))
            compute = compute_for(spread)
        found.append(work_of(run, compute, spread))
    return found


def seconds_of(run: Run, ranks: int) -> float:
    """Return the seconds of a published step."""
    return ranks * run.rows / run.rates[ranks]


def main() -> None:
    """Print a table for each run."""
    for run in RUNS:
        works = fitted(run)
        first, second = list(run.rates)[:2]
        print(f"\n{run.name}, {run.rows} rows a rank, {run.parameters / 1e6:.0f} million parameters: {run.source}")
        print(*(f"  {note}" for note in run.notes), sep="\n")
        for work in works:
            print(f"  compute {1e3 * work.spent.total:.0f} ms, spread {1e3 * work.spread:.1f} ms")
        print("| GPUs | published samples/s | efficiency | links alone | error | with a spread | error |")
        print("|---|---|---|---|---|---|---|")
        for ranks, published in run.rates.items():
            told = [f"{ranks} | {published:,.0f} | {published / ranks * first / run.rates[first]:.1%}"]
            for number, work in enumerate(works):
                found = ranks * run.rows / step_time(work, run.cluster, ranks).total
                given = ranks == first or (number and ranks == second)
                told.append(f"{found:,.0f} | {'given' if given else f'{found / published - 1:+.1%}'}")
            print("| " + " | ".join(told) + " |")


if __name__ == "__main__":
    main()
