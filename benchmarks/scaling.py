"""Weak scaling of two ranks against one, in turn, and the constants of the scaling model; its prediction beside it.

    python benchmarks/scaling.py [--rounds 3] [--steps 12] [--rows 32]

One rank and two ranks with as many rows each train the same recipe on the embedded data set through the real engine,
A B A B; times are medians of steps. The bandwidth and latency of gloo are measured in the two-rank runs, and what
`launch.scaling` predicts from them and from the one-rank step is printed beside what was measured. The table for 8 to
4,096 ranks takes the constants of an accelerator cluster, printed with it; those are from data sheets, not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DIM, ROWS = 128, 32
RECIPE = {
    "name": "scaling",
    "data": {"path": "embedded:dft_crystals", "batch_size": ROWS, "split": "chemical_system", "workers": 1},
    "modalities": {
        "dos": {
            "encoder": {"kind": "spectrum_transformer", "patch": 4, "depth": 4, "heads": 8, "head_dim": 64,
                        "mlp_dim": 512, "dim": DIM, "summary": False, "dropout": 0.0},
        },
        "charge_density": {"encoder": {"kind": "resnext3d", "depth": 26, "dim": DIM, "coarsen": 1, "width": 32}},
    },
    "projection": {"dim": DIM},
    "objective": {"kind": "all_pairs"},
    "optim": {"epochs": 100, "precision": "fp32", "grad_clip": 0.0},
}  # fmt: skip


def worker(rows: int, steps: int, stage: int) -> None:
    """Train some steps on this rank and print the times, rank 0 for all."""
    import torch
    import torch.distributed as dist

    from pretrain.config import parse_recipe
    from pretrain.engine import Engine, start_process_group
    from pretrain.model import MultimodalModel
    from pretrain.parts import fit_encoders
    from pretrain.spans import Spans
    from shards.locate import locate
    from shards.reader import Dataset
    from shards.stream import BatchStream

    rank, world, _ = start_process_group()
    tables = {**RECIPE, "data": {**RECIPE["data"], "batch_size": rows * world}}  # type: ignore[dict-item]
    recipe = parse_recipe(tables, where="scaling")
    names = list(recipe.modalities)
    dataset = Dataset(locate(str(recipe.data.path))).select(names)
    complete = dataset.presence(names[0]) & dataset.presence(names[1])
    # complete samples alone, so that every rank has the same work
    positions = dataset.positions("chemical_system", "train")
    positions = positions[complete[positions]]
    fitted = fit_encoders(
        recipe, dataset.modalities, lambda name: (dataset[int(p)].value(name) for p in positions[:64])
    )
    torch.manual_seed(0)
    model = MultimodalModel(recipe, dataset.modalities, fitted)
    engine = Engine(
        model, recipe.optim, batch_size=rows * world, warmup_steps=0, total_steps=10**6, seed=0,
        settings={"zero_optimization": {"stage": stage}},
    )  # fmt: skip
    stream = BatchStream(dataset, positions, batch_size=rows * world, rank=rank, world=world)
    batches = [batch for batch in stream.epoch(0) if len(batch.ids) == rows]
    times: list[float] = []
    spans = Spans()
    for step in range(steps + 2):
        dist.barrier()
        began = time.perf_counter()
        with spans:
            engine.compute(batches[step % len(batches)], step)
            engine.apply()
        if step >= 2:
            times.append(time.perf_counter() - began)
    found: dict[str, Any] = {
        "step": statistics.median(times),
        "parameters": sum(p.numel() for p in model.parameters()),
        "spans": {name: seconds / (steps + 2) for name, seconds in spans.seconds.items()},
        **(links() if world > 1 else {}),
    }
    if rank == 0:
        print("RESULT " + json.dumps(found), flush=True)


def links() -> dict[str, float]:
    """Measure latency and bandwidth of an all-gather on this process group."""
    import torch
    import torch.distributed as dist

    from pretrain.gather import all_gather

    world = dist.get_world_size()

    def seconds(bytes_: int, repeats: int) -> float:
        mine = torch.zeros(bytes_ // 4)
        everything = torch.zeros(world * len(mine))
        times = []
        for _ in range(repeats):
            dist.barrier()
            began = time.perf_counter()
            all_gather(everything, mine)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    small, large = seconds(64, 50), seconds(16 << 20, 7)
    return {"latency": small / (world - 1), "bandwidth": (world - 1) * (16 << 20) / (large - small)}


def launch(world: int, rows: int, steps: int, stage: int) -> dict[str, Any]:
    """Run `worker` on ``world`` ranks of one thread each."""
    from pretrain.ports import free_port

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(world)]
    command += ["--master_port", str(free_port()), __file__, "--worker"]
    command += ["--rows", str(rows), "--steps", str(steps), "--stage", str(stage)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(lines[0].removeprefix("RESULT "))


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.rows, options.steps, options.stage)
        return
    from launch.scaling import Cluster, Link, Work, step_time, traffic

    one, two = [], []
    for _ in range(options.rounds):
        one.append(launch(1, options.rows, options.steps, options.stage))
        two.append(launch(2, options.rows, options.steps, options.stage))
    alone, both = (statistics.median(run["step"] for run in runs) for runs in (one, two))
    link = Link(
        latency_s=statistics.median(run["latency"] for run in two),
        bandwidth=statistics.median(run["bandwidth"] for run in two),
    )
    work = Work(
        rows=options.rows, embeddings=2, dim=DIM, pairs=1, parameters=one[0]["parameters"], stage=options.stage,
        compute_s=alone, logits_per_s=2e10, checkpoint_every=10**9,
    )  # fmt: skip
    here = Cluster(ranks_per_node=2, within=link, between=link, storage_write=1e9, storage_per_node=1e9)
    predicted = step_time(work, here, 2)
    print(f"parameters {work.parameters:,}, {options.rows} rows a rank, ZeRO {options.stage}, one thread a rank")
    print(f"gloo on loopback: {link.latency_s * 1e6:.0f} us, {link.bandwidth / 1e9:.2f} GB/s a rank")
    print(f"one rank {alone * 1e3:.0f} ms a step, two ranks {both * 1e3:.0f} ms: efficiency {alone / both:.1%}")
    print("  rounds:", *[f"{a['step'] / b['step']:.1%}" for a, b in zip(one, two, strict=True)])
    print(f"predicted for two ranks: {predicted.total * 1e3:.0f} ms, {alone / predicted.total:.1%}")
    print(f"bytes a rank sends in a step: {traffic(work, 2).total:,}")


if __name__ == "__main__":
    main()
