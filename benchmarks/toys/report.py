"""What the toy proofs share: seeds of the command line in, a Markdown table out."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping

import torch

Measured = Mapping[str, Mapping[str, float]]


def report(measure: Callable[[int], Measured], *, bars: Mapping[str, str], digits: int = 3) -> None:
    """Measure every seed of ``--seeds`` and print a table: one row a method and quantity, one column a seed.

    Parameters
    ----------
    measure : callable
        Seed to {method: {quantity: value}}.
    bars : mapping of str to str
        What "method, quantity" ought to be, shown in the last column.
    digits : int
        Decimals.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    began = time.process_time()
    results = [measure(seed) for seed in seeds]
    print("| method | quantity |", " | ".join(f"seed {seed}" for seed in seeds), "| mean | expected |")
    print("|---|---|" + "---|" * (len(seeds) + 2))
    for method, quantities in results[0].items():
        for quantity in quantities:
            values = [result[method][quantity] for result in results]
            shown = " | ".join(f"{value:.{digits}f}" for value in [*values, sum(values) / len(values)])
            print(f"| {method} | {quantity} | {shown} | {bars.get(f'{method}, {quantity}', '')} |")
    print(f"\n{(time.process_time() - began) / len(seeds):.0f} s of CPU a seed")
