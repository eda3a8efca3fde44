"""Memory and time of one step over a local batch, whole and in micro-batches, each in a process of its own.

python benchmarks/memory.py [--batch 512] [--micro 512 256 128 64 32]

Two spectra by transformers, InfoNCE between them, forward and backward. Memory is what the step adds to the process's
largest resident set; gradients are compared with those of the whole batch.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import psutil
import torch

from pretrain.accumulate import contrast
from pretrain.config import parse_recipe
from pretrain.model import MultimodalModel
from pretrain.prepare import prepare
from shards.batch import Batch, collate
from shards.schema import FieldSpec, ModalitySpec, Sample

POINTS, MIB = 512, 2**20
NAMES = ("dos", "xrd")
SPECS = {
    name: ModalitySpec(name=name, kind="spectrum", fields={"intensity": FieldSpec(dtype="float32", shape=(POINTS,))})
    for name in NAMES
}
ENCODER = {
    "kind": "spectrum_transformer", "patch": 8, "depth": 3, "dim": 128, "dropout": 0.1, "summary": False,
    "scale": "linear",
}  # fmt: skip


def batch(rows: int) -> Batch:
    """Random spectra."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(id=str(row), arrays={name: {"intensity": rng.random(POINTS, np.float32)} for name in NAMES})
        for row in range(rows)
    ]
    return collate(samples, SPECS)


def model(recomputed: bool) -> MultimodalModel:
    """Two transformers of 64 tokens."""
    recipe = parse_recipe(
        {
            "name": "memory", "data": {"path": "none"}, "objective": {"kind": "all_pairs"},
            "modalities": {name: {"encoder": ENCODER} for name in NAMES},
            "optim": {"checkpoint_activations": recomputed},
        },
        where="benchmark",
    )  # fmt: skip
    torch.manual_seed(0)
    net = MultimodalModel(recipe, SPECS, {name: {"unit": 1.0} for name in NAMES})
    prepare(net, recipe)
    return net


def peak() -> int:
    """Largest resident set of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(rows: int, micro: int, recomputed: bool, dropout: bool) -> dict[str, float]:
    """Measure one step, after one over four rows that imports and allocates what every step needs."""
    torch.set_num_threads(1)
    net, whole = model(recomputed), batch(rows)
    net.train(dropout)
    backward = torch.Tensor.backward
    contrast(net, net.objective, backward, batch(4))
    net.zero_grad(set_to_none=False)
    # what was needed before the step must not hide what it needs
    before = max(peak(), psutil.Process().memory_info().rss)
    began = time.process_time()
    torch.manual_seed(0)
    contrast(net, net.objective, backward, whole, specs=SPECS, micro_batch=None if micro >= rows else micro)
    seconds = time.process_time() - began
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    return {"mib": (peak() - before) / MIB, "seconds": seconds, "norm": float(norm)}


def measured(*arguments: object) -> dict[str, float]:
    """Run `step` in a new process."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--micro", type=int, nargs="+", default=[512, 256, 128, 64, 32])
    parser.add_argument("--one", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        rows, micro, recomputed, dropout = options.one
        print(json.dumps(step(rows, micro, bool(recomputed), bool(dropout))))
        return
    print("| micro-batch | recomputed | MiB | of the whole | CPU s | of the whole | gradient norm, no dropout |")
    print("|---|---|---|---|---|---|---|")
    first: dict[str, float] = {}
    for recomputed in (0, 1):
        for micro in options.micro:
            found = measured(options.batch, micro, recomputed, 1)
            first = first or found
            exact = measured(options.batch, micro, recomputed, 0)["norm"]
            print(
                f"| {micro} | {'yes' if recomputed else 'no'} | {found['mib']:.0f} | {found['mib'] / first['mib']:.2f} "
                f"| {found['seconds']:.1f} | {found['seconds'] / first['seconds']:.2f} | {exact:.6f} |"
            )


if __name__ == "__main__":
    main()
