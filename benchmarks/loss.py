"""The contrastive loss over the whole matrix of similarities beside the streamed one: time and peak memory.

OMP_NUM_THREADS=1 python benchmarks/loss.py

Four modalities make six pairs of InfoNCE (all_pairs), forward and backward, float32. Both forms run in turn, A B A B,
each run in a process of its own: CPU time, and the growth of the process's largest resident memory (VmHWM, which the
kernel counts) over what it held with the embeddings in place. The whole matrix is one product a pair, whose transpose
serves the other direction.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives.base import OBJECTIVES, GlobalBatch
from pretrain.objectives.streaming import CHUNK

NAMES = ("a", "b", "c", "d")
DIM = 128


def whole(z: dict[str, Tensor], scale: Tensor) -> Tensor:
    """Mean over the pairs of symmetric InfoNCE, with every logit held."""
    losses = []
    for a, b in combinations(z, 2):
        logits = scale * (F.normalize(z[a], dim=1) @ F.normalize(z[b], dim=1).T)
        own = torch.arange(len(logits))
        losses.append(0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)))
    return torch.stack(losses).mean()


def streamed(z: dict[str, Tensor], chunk: int) -> Tensor:
    """Return the same by the objective of a recipe."""
    table = {"kind": "all_pairs", "pair_loss": {"kind": "infonce", "chunk": chunk}}
    rows = len(z["a"])
    objective = OBJECTIVES.get("all_pairs")(OBJECTIVES.options(table), NAMES)
    present = dict.fromkeys(NAMES, torch.ones(rows, dtype=torch.bool))
    return objective(GlobalBatch(z=z, present=present, local=slice(0, rows)))[0]


def resident(field: str) -> float:
    """Return a line of the process's memory, in MB: VmRSS now, VmHWM the largest so far."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measure(form: str, rows: int, chunk: int, repeats: int) -> dict[str, float]:
    """Run one form in this process; the smallest time of some repeats, and the peak of them all."""
    rng = torch.Generator().manual_seed(0)

    def once(count: int) -> tuple[float, float]:
        z = {name: torch.randn(count, DIM, generator=rng).requires_grad_() for name in NAMES}
        scale = torch.tensor([10.0], requires_grad=True)
        start = time.process_time()
        loss = whole(z, scale) if form == "whole" else streamed(z, chunk)
        loss.backward()
        return time.process_time() - start, loss.item()

    once(64)  # libraries set themselves up
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest so far
    before = resident("VmRSS")
    runs = [once(rows) for _ in range(repeats)]
    return {"ms": 1e3 * min(ms for ms, _ in runs), "mb": resident("VmHWM") - before, "loss": runs[0][1]}


def in_turn(forms: list[str], rows: int, chunk: int, rounds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Measure the forms one after the other, several rounds, each in a new process; medians."""
    found: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form in forms:
            command = [sys.executable, __file__, "--measure", form, "--rows", str(rows), "--chunk", str(chunk),
                       "--repeats", str(repeats)]  # fmt: skip
            found[form].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {form: {key: median(run[key] for run in runs) for key in runs[0]} for form, runs in found.items()}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk", type=int, default=CHUNK, help="rows of the matrix that the streamed form holds")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--most-whole", type=int, default=4096, help="more rows are run in the streamed form alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--measure", choices=["whole", "streamed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(json.dumps(measure(options.measure, options.rows[0], options.chunk, options.repeats)))
        return
    print(f"torch {torch.__version__}, 1 thread, d = {DIM}, 6 pairs, {options.chunk} rows a chunk\n")
    print("| rows | whole: ms, MB | streamed: ms, MB | times faster | of the memory | losses differ by |")
    print("|---|---|---|---|---|---|")
    for rows in options.rows:
        both = rows <= options.most_whole
        rounds, repeats = (options.rounds, options.repeats) if both else (1, 1)
        forms = ["whole", "streamed"] if both else ["streamed"]
        found = in_turn(forms, rows, options.chunk, rounds, repeats)
        ours, plain = found["streamed"], found.get("whole")
        cells = [f"{rows:,}", f"{plain['ms']:,.0f}, {plain['mb']:,.0f}" if plain else "-",
                 f"{ours['ms']:,.0f}, {ours['mb']:,.0f}"]  # fmt: skip
        if plain:
            cells += [f"{plain['ms'] / ours['ms']:.2f}", f"1/{plain['mb'] / ours['mb']:.1f}"]
            cells += [f"{abs(plain['loss'] - ours['loss']):.1e}"]
        print(f"| {' | '.join(cells)} |" if plain else f"| {' | '.join([*cells, '-', '-', '-'])} |", flush=True)


if __name__ == "__main__":
    main()
