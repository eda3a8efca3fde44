"""What Magpie descriptors of a formula predict, by estimator and by how the folds are divided.

``python -m benchmarks.baselines ../shared/data/dielectric_mp/dielectric_clean.csv.gz n`` prints the table of
docs/ensembles_and_folds.md (one core, minutes). Any table with a column ``formula`` will do.
"""

from __future__ import annotations

import argparse
from statistics import fmean, stdev

import numpy as np
import pandas as pd

from finetune.cross_validation import EstimatorModel, cross_validate
from finetune.descriptors import magpie
from finetune.estimators.base import ESTIMATORS
from finetune.fold_leakage import fold_leakage
from finetune.folds import Fold, FoldPlan, make_folds
from shards.splits import SampleInfo

KINDS = ("mean", "linear_probe", "knn", "svr", "gradient_boosting", "random_forest")


def score(kind: str, x: np.ndarray, y: np.ndarray, folds: list[Fold], seed: int) -> dict[str, float]:
    """Return the metrics of all held-out rows."""
    estimator = ESTIMATORS.options({"kind": kind})
    found = cross_validate(
        lambda fold: EstimatorModel(estimator, task="regression", seed=seed), x, y, folds, duplicates="allow"
    )
    return found.score("regression")


def main() -> None:
    """Print mean and standard deviation over the seeds of the error of all held-out rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table")
    parser.add_argument("target")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    arguments = parser.parse_args()
    rows = pd.read_csv(arguments.table)
    y, x = rows[arguments.target].to_numpy(float), magpie(rows["formula"].tolist())
    infos = [
        SampleInfo(id=str(i), tags={"formula": formula}, labels={"y": value})
        for i, (formula, value) in enumerate(zip(rows["formula"], y, strict=True))
    ]
    print(f"{len(rows)} rows, {rows['formula'].nunique()} formulas")
    plans = {
        "row": FoldPlan(),
        "formula": FoldPlan(by="formula"),
        "chemical system": FoldPlan(by="chemical_system"),
        "cluster": FoldPlan(by="cluster"),
        "top 10 %": FoldPlan(by="top_quantile", label="y", quantile=0.1),
    }
    for name, plan in plans.items():
        # nothing of the top is drawn at random
        seeds = range(1 if plan.by == "top_quantile" else arguments.seeds)
        folds = {seed: make_folds(plan.model_copy(update={"seed": seed}), infos) for seed in seeds}
        leaks = fold_leakage({"magpie": x}, folds[0])
        equal = sum(row["equal"] for row in leaks) / sum(row["rows"] for row in leaks)
        nearest = np.median([row["nearest"] for row in leaks])
        print(f"\n{name}: {equal:.1%} have descriptors of a training row, nearest {nearest:.2f}")
        for kind in arguments.kinds:
            scores = [score(kind, x, y, folds[seed], seed) for seed in seeds]
            spread = {m: stdev(s[m] for s in scores) if len(scores) > 1 else 0.0 for m in ("mae", "r2")}
            print(
                f"{kind:18} mae {fmean(s['mae'] for s in scores):.3f} +- {spread['mae']:.3f}  "
                f"r2 {fmean(s['r2'] for s in scores):+.3f} +- {spread['r2']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
