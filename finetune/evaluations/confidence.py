"""Uncertainty of classes: whether probabilities are frequencies, and whether sets hold the true class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes

from finetune.calibration import Calibration, Task
from finetune.evaluations.base import Draw
from finetune.evaluations.stated import Found, Stated
from finetune.metrics.uncertainty import classes, coverage_range, reliability
from finetune.prediction import Prediction
from pretrain.plots import Row
from shards.errors import ConfigError

TEXT = (
    "calibration: expected calibration error in 15 bins, Brier score and negative log likelihood of the probabilities, "
    "before and after the temperature that the calibration part asks for; it changes no decision. reliability: of each "
    "bin of confidence, the share that is right. risk_coverage: the error rate of the share of rows of highest "
    "confidence. sets: the share of rows whose class is in the conformal set of each level, the range (low .. high) in "
    "which it is with a probability of 95 % where rows are exchangeable (more where probabilities tie), the mean "
    "number of classes in a set, and the share of sets of one class and of none: it is empty where no class is likely "
    "enough. sets_by_class: the same for the rows of each class, for which nothing is promised: a rare class is often "
    "covered less, at the cost of the others."
)


def classes_found(stated: Stated, levels: Sequence[float], shown: float) -> Found:
    """Measure every target; rows are listed with their sets of level ``shown``."""
    if stated.task == "multiclass" and stated.tested.probabilities is None:
        raise ConfigError("the predictor says no probabilities of its classes", do="evaluate one that does")
    found = Found(TEXT)
    task = cast(Task, stated.task)
    fits = {level: Calibration.fit(stated.held, stated.held_targets, task=task, level=level) for level in levels}
    applied = {level: fit.apply(stated.tested) for level, fit in fits.items()}
    fit = fits[shown]
    stages = {"before": stated.tested, "after": applied[shown]}
    for i, name, rows in stated.known():
        truth = stated.targets[rows, i].numpy().astype(int)
        curves = {}
        for stage, prediction in stages.items():
            probabilities = _probabilities(prediction, i)[rows]
            measured = classes(probabilities, truth)
            temperature = fit.temperature[i]
            found.add(
                "calibration",
                {"target": name, "stage": stage, "temperature": temperature, "rows": len(truth), **measured},
            )
            found.values |= {f"{name}/{key}_{stage}": value for key, value in measured.items()}
            confidence, right = probabilities.max(1), (probabilities.argmax(1) == truth).astype(float)
            curves[stage] = reliability(confidence, right)
            found.add("reliability", *({"target": name, "stage": stage, **row} for row in curves[stage]))
        found.risk(name, -confidence, 1 - right, "error rate")
        found.plots[f"reliability_{name}"] = _drawn(name, curves)
        for level in levels:
            _sets(found, name, fits[level], i, _set(applied[level], i)[rows], truth)
        found.add("rows", *_listed(stated.ids, name, rows, truth, probabilities, _set(applied[shown], i)))
    return found


def _probabilities(prediction: Prediction, i: int) -> np.ndarray:
    """Return the probabilities (N, C) of the classes of target ``i``."""
    if prediction.probabilities is not None:
        return prediction.probabilities.double().numpy()
    one = prediction.value[:, i].double().numpy()
    return np.stack([1 - one, one], axis=1)


def _set(prediction: Prediction, i: int) -> np.ndarray:
    """Return which classes are in the set of target ``i`` (N, C)."""
    assert prediction.sets is not None
    return prediction.sets[:, i].numpy()


def _sets(found: Found, name: str, fit: Calibration, i: int, sets: np.ndarray, truth: np.ndarray) -> None:
    """Measure sets (n, C) against classes (n,)."""
    size, inside = sets.sum(1), sets[np.arange(len(truth)), truth]
    low, high = coverage_range(fit.rows[i], len(truth), fit.level)
    row: dict[str, Any] = {
        "target": name,
        "level": fit.level,
        "rows_calibrated": fit.rows[i],
        "rows": len(truth),
        "coverage": float(inside.mean()),
        "low": low,
        "high": high,
        "mean_size": float(size.mean()),
        "single": float((size == 1).mean()),
        "empty": float((size == 0).mean()),
    }
    found.add("sets", row)
    for key in ("coverage", "mean_size", "empty"):
        found.values[f"{name}/set_{key}_{100 * fit.level:g}"] = float(row[key])
    for number in np.unique(truth):
        mine = truth == number
        found.add(
            "sets_by_class",
            {
                "target": name,
                "level": fit.level,
                "class": int(number),
                "rows": int(mine.sum()),
                "coverage": float(inside[mine].mean()),
                "mean_size": float(size[mine].mean()),
                "empty": float((size[mine] == 0).mean()),
            },
        )


def _listed(
    ids: Any, name: str, rows: np.ndarray, truth: np.ndarray, probabilities: np.ndarray, sets: np.ndarray
) -> list[Row]:
    return [
        {
            "id": ids[j],
            "target": name,
            "truth": int(truth[k]),
            "value": int(probabilities[k].argmax()),
            "confidence": float(probabilities[k].max()),
            "set": " ".join(str(number) for number in np.flatnonzero(sets[j])),
        }
        for k, j in enumerate(np.flatnonzero(rows))
    ]


def _drawn(name: str, curves: dict[str, list[Row]]) -> Draw:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="0.7", lw=1)
        for stage, rows in curves.items():
            axes.plot([r["confidence"] for r in rows], [r["right"] for r in rows], "o-", ms=3, label=stage)
        axes.set(xlabel="confidence", ylabel="share that is right", title=name, xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(fontsize=7)

    return draw
