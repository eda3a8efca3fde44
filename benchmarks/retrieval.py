"""Held-out retrieval of the demo recipe beside the plain baseline, on three splits by chemical system.

python benchmarks/retrieval.py --seeds 0 1 2

For each seed: a new split, a new training through DeepSpeed's launcher with the seed, one look at the
test part by the model that was best on the validation part. The baseline selects nothing, so beside the
same rows it is also trained on train and val together.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from descriptor_baseline import baseline

from finetune.evaluations.retrieval import retrieval_table
from finetune.loading import load_foundation
from launch.start import pretrain_command, ranks_here, run
from shards.locate import build_embedded
from shards.reader import Dataset

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "demo.toml"
SPLIT = "chemical_system"
Pair = tuple[str, str]


def trained(shards: Path, out: Path, seed: int, overrides: list[str]) -> dict[Pair, dict[str, Any]]:
    """Train the demo recipe and return its test retrieval by pair."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{out.parent}/mlflow.db"
    options = ["--out", str(out)]
    for assignment in (f"data.path={shards}", f"seed={seed}", *overrides):
        options += ["--set", assignment]
    code = run(pretrain_command(RECIPE, options, ranks_here(most_on_cpu=2)))
    if code:
        sys.exit(code)
    rows = retrieval_table(load_foundation(str(out / "best")), Dataset(shards), split=SPLIT, part="test")
    return {(str(row["query"]), str(row["target"])): row for row in rows}


def plain(shards: Path, seed: int, *, parts: tuple[str, ...]) -> dict[Pair, float]:
    """Train the baseline on some parts of the same split and return its test recall@1 by pair."""
    dataset = Dataset(shards)

    def mask(names: tuple[str, ...]) -> np.ndarray:
        return np.isin(np.arange(len(dataset)), np.concatenate([dataset.positions(SPLIT, name) for name in names]))

    return baseline(list(dataset), mask(parts), mask(("test",)), seed=seed)


def main() -> None:
    """Print a Markdown table and write ``retrieval.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a value of the recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-retrieval"))
    options = parser.parse_args()
    ours: list[dict[Pair, dict[str, Any]]] = []
    same_rows: list[dict[Pair, float]] = []
    more_rows: list[dict[Pair, float]] = []
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as scratch:
        for seed in options.seeds:
            shards = Path(scratch) / f"shards-{seed}"
            build_embedded("dft_crystals", shards, workers=os.cpu_count() or 1, seed=seed)
            ours.append(trained(shards, Path(scratch).resolve() / f"run-{seed}", seed, options.set))
            same_rows.append(plain(shards, seed, parts=("train",)))
            more_rows.append(plain(shards, seed, parts=("train", "val")))
    rows = []
    for pair in ours[0]:
        runs = [run_[pair] for run_ in ours]
        values = [row["recall_at_1"] for row in runs]
        rows.append(
            {
                "query": pair[0],
                "target": pair[1],
                "n": [row["n"] for row in runs],
                "matloom": values,
                "baseline": [run_[pair] for run_ in same_rows],
                "baseline_with_val": [run_[pair] for run_ in more_rows],
                "chance": fmean(row["chance_at_1"] for row in runs),
                "recall_at_5": fmean(row["recall_at_5"] for row in runs),
                "median_rank": fmean(row["median_rank"] for row in runs),
            }
        )
    (options.out / "retrieval.json").write_text(json.dumps(rows, indent=1))
    print(
        "| query | target | matloom recall@1 | baseline | baseline with val | chance | matloom recall@5 | median rank |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['query']} | {row['target']} | {_mean(row['matloom'])} | {_mean(row['baseline'])} "
            f"| {_mean(row['baseline_with_val'])} | {row['chance']:.3f} | {row['recall_at_5']:.2f} "
            f"| {row['median_rank']:.1f} |"
        )


def _mean(values: list[float]) -> str:
    spread = f" +- {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
