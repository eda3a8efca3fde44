"""What the rows of a comparison gave: one run a fold and seed, their means, and the seeds of a fold together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from finetune.config import RowConfig
from finetune.ensembles import How, combine, error_parts
from finetune.metrics import evaluate
from finetune.prediction import Prediction
from finetune.rows import Outcome


@dataclass
class Result:
    """One row of the table.

    Attributes
    ----------
    row : RowConfig
        Strategy and modalities.
    validation, test : list of dict
        Metrics, one dict a run.
    runs : list of tuple
        Fold and seed of each run; of one split the fold is "".
    together : list of dict
        Test metrics of the seeds of a fold as an ensemble, one dict a fold.
    predictions, targets : ndarray
        Test predictions of the first run and their targets, for the parity plot.
    """

    row: RowConfig
    validation: list[dict[str, float]] = field(default_factory=list)
    test: list[dict[str, float]] = field(default_factory=list)
    runs: list[tuple[str, int]] = field(default_factory=list)
    together: list[dict[str, float]] = field(default_factory=list)
    predictions: np.ndarray = field(default_factory=lambda: np.zeros(0))
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, fold: str, seed: int, outcome: Outcome) -> None:
        """Take note of one run."""
        self.runs.append((fold, seed))
        self.validation.append(outcome.validation)
        self.test.append(outcome.test | outcome.scores)
        if not self.predictions.size:
            self.predictions, self.targets = outcome.predictions.numpy(), outcome.targets.numpy()

    def add_together(self, outcomes: Sequence[Outcome], how: How, task: str) -> None:
        """Take note of what the seeds of one fold are worth together; of a mean also why: see `error_parts`.

        Class numbers of several classes have no mean: of these the registered ensemble alone, which has their
        probabilities, is measured.
        """
        if len(outcomes) < 2 or task == "multiclass":
            return
        targets = outcomes[0].targets
        value = combine([Prediction(outcome.predictions) for outcome in outcomes], how).value
        found = evaluate(task, value, targets)
        if how == "mean" and task == "regression":
            found |= error_parts(torch.stack([outcome.predictions for outcome in outcomes]), targets)
        self.together.append(found)

    @property
    def folds(self) -> list[str]:
        """Names of the folds, [""] of one split."""
        return list(dict.fromkeys(fold for fold, _ in self.runs))

    def summary(self) -> dict[str, Any]:
        """Return strategy, modalities, and mean and standard deviation over the runs of every metric."""
        table: dict[str, Any] = {
            "strategy": self.row.label,
            "modalities": list(self.row.modalities),
            "seeds": len({seed for _, seed in self.runs}),
        }
        if self.folds != [""]:
            table["folds"] = len(self.folds)
        for part, runs in (("val", self.validation), ("test", self.test), ("ensemble_test", self.together)):
            for metric in runs[0] if runs else ():
                values = [run[metric] for run in runs]
                table[f"{part}_{metric}"] = fmean(values)
                table[f"{part}_{metric}_std"] = stdev(values) if len(values) > 1 else 0.0
        return table

    def by_fold(self) -> list[dict[str, Any]]:
        """Return a line a fold, as Matbench has it: mean over the seeds of every test metric."""
        about = {"strategy": self.row.label, "modalities": "+".join(self.row.modalities)}
        lines = []
        for fold in self.folds:
            mine = [test for (name, _), test in zip(self.runs, self.test, strict=True) if name == fold]
            means = {f"test_{metric}": fmean(run[metric] for run in mine) for metric in mine[0]}
            lines.append({**about, "fold": fold, "seeds": len(mine), **means})
        return lines
