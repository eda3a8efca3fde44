"""Weak scaling of one, two and four ranks in turn, and a whole run, each against what was predicted of it.

    python benchmarks/scaling.py [--rounds 3] [--steps 12] [--rows 32] [--ranks 1,2,4]
    python benchmarks/scaling.py --whole recipes/demo.toml [--set A.B=C]... [--ranks 1,2]

Weak scaling: every rank has as many rows of complete samples of the embedded data set, through the real engine on gloo,
one thread a rank, A B C A B C; times are medians of steps. The prediction is `launch.estimates` with the step, the loss
and the spread of the runs of one rank, and the latency and bandwidth of gloo that the runs of two measured.
A whole run: `matloom pretrain RECIPE --dry-run` says how long it takes, then it is run and timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
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

    from launch.estimates.links import link
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
        if step == 2:
            spans.seconds.clear()
            cpu, wall = time.process_time(), time.perf_counter()
        began = time.perf_counter()
        with spans:
            engine.compute(batches[step % len(batches)], step)
            engine.apply()
        times.append(time.perf_counter() - began)
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    low, _, high = statistics.quantiles(times[2:], n=4)
    found: dict[str, Any] = {
        "step": statistics.median(times[2:]),
        "spread": (high - low) / 1.349,
        "busy": busy,
        "optimizer": spans.seconds["optimizer"] / steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        **(link() if world == 2 else {}),
    }
    if rank == 0:
        print("RESULT " + json.dumps(found), flush=True)


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


def weak(options: argparse.Namespace) -> None:
    """Print measured and predicted steps of each number of ranks."""
    from launch.estimates.cluster import Link
    from launch.estimates.run import this_host
    from launch.estimates.step import step_time
    from launch.estimates.traffic import traffic
    from launch.estimates.work import Spent, Work

    counts = [int(word) for word in options.ranks.split(",")]
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    for _ in range(options.rounds):
        for count in counts:
            runs[count].append(launch(count, options.rows, options.steps, options.stage))

    def median(count: int, name: str) -> float:
        return statistics.median(run[name] for run in runs[count])

    optimizer, step = median(1, "optimizer"), median(1, "step")
    spent = Spent(data=0, forward=(step - optimizer) / 3, backward=2 * (step - optimizer) / 3, loss=0,
                  optimizer=optimizer, rest=0)  # fmt: skip
    work = Work(
        name="scaling", device="cpu", rows=options.rows, embeddings=2, dim=DIM, trained=runs[1][0]["parameters"],
        stage=options.stage, spent=spent, spread=median(1, "spread"), busy=median(1, "busy"), checkpoint_every=10**9,
    )  # fmt: skip
    link = Link(latency=f"{median(2, 'latency')!r} s", bandwidth=f"{median(2, 'bandwidth')!r} B/s")
    cores = os.cpu_count() or 1
    print(f"parameters {work.trained:,}, {options.rows} rows a rank, ZeRO {options.stage}, one thread a rank")
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}; a rank keeps {work.busy:.2f} cores busy")
    print(f"gloo on loopback: {link.latency * 1e6:.0f} us, {link.bandwidth / 1e9:.2f} GB/s a rank")
    print("| ranks | step ms | rounds | efficiency | predicted ms | efficiency | error | bytes a rank sends |")
    print("|---|---|---|---|---|---|---|---|")
    for count in counts:
        here = this_host(work, link, ranks=count, hosts=1)
        told = step_time(work, here, count, cores=cores).total
        found = median(count, "step")
        rounds = " ".join(f"{1e3 * run['step']:.0f}" for run in runs[count])
        print(
            f"| {count} | {1e3 * found:.0f} | {rounds} | {step / found:.1%} | {1e3 * told:.0f} | {step / told:.1%} | "
            f"{told / found - 1:+.1%} | {traffic(work, count).total:,.0f} |"
        )


def whole(options: argparse.Namespace) -> None:
    """Print how long a run takes and how long it was said to take, for each number of ranks."""
    print(f"{options.whole} {' '.join(options.set)}, load {os.getloadavg()[0]:.1f}")
    print(
        "| ranks | round | predicted s | of it steps | took s | error | step ms predicted | median of the run | error |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for number in range(options.rounds):
        for count in (int(word) for word in options.ranks.split(",")):
            row = compared(options, count)
            print(f"| {count} | {number + 1} | {row}", flush=True)


def compared(options: argparse.Namespace, count: int) -> str:
    """Return the cells of one run beside its dry run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "launch.cli", "pretrain", options.whole, "--accelerators", str(count)]
        command += [word for item in options.set for word in ("--set", item)] + ["--out", f"{folder}/run"]
        variables = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}

        def run(*more: str) -> str:
            done = subprocess.run([*command, *more], env=variables, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
            return done.stdout

        told = json.loads(run("--dry-run", "--json"))["time"]
        began = time.perf_counter()
        run()
        took = time.perf_counter() - began
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    steps = [found["seconds/step"] for found in map(json.loads, lines) if "seconds/step" in found]
    step = statistics.median(steps)
    return (
        f"{told['total']:.0f} | {told['steps']:.0f} | {took:.0f} | {told['total'] / took - 1:+.0%} | "
        f"{1e3 * told['step']:.0f} | {1e3 * step:.0f} | {told['step'] / step - 1:+.0%} |"
    )


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--whole", metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.rows, options.steps, options.stage)
    elif options.whole:
        whole(options)
    else:
        weak(options)


if __name__ == "__main__":
    main()
