"""Uncertainty of numbers: coverage of intervals, standard deviations before and after calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import norm, spearmanr

from finetune.calibration import Calibration
from finetune.evaluations.base import Draw
from finetune.evaluations.stated import Found, Stated
from finetune.metrics.uncertainty import coverage_range, gaussian, observed
from finetune.prediction import Prediction
from pretrain.plots import Row

LEVELS = np.linspace(0, 1, 101)
STAGES = ("before", "after")
TEXT = (
    "intervals: the share of rows whose value lies in the conformal interval of each level, the range (low .. high) in "
    "which it is with a probability of 95 % where rows are exchangeable, and the mean width; beside it the coverage of "
    "normal intervals by the standard deviation as it is said, and multiplied by one factor. calibration: the standard "
    "deviation before and after this factor: share of errors within one (0.683 is right), root mean square z (1 is "
    "right), miscalibration area (0 is right), negative log likelihood and sharpness. risk_coverage: the mean absolute "
    "error of the share of rows of least uncertainty."
)


def numbers_found(stated: Stated, levels: Sequence[float], shown: float) -> Found:
    """Measure every target; rows are listed with their intervals of level ``shown``."""
    found = Found(TEXT)
    fits = {level: Calibration.fit(stated.held, stated.held_targets, level=level) for level in levels}
    applied = {level: fit.apply(stated.tested) for level, fit in fits.items()}
    for i, name, rows in stated.known():
        truth = stated.targets[rows, i].double().numpy()
        for level in levels:
            row = _interval(name, i, rows, truth, fits[level], applied[level])
            found.add("intervals", row | _normal(stated.tested, applied[level], i, rows, truth, level))
            found.values[f"{name}/coverage_{100 * level:g}"] = float(row["coverage"])
        _stages(found, stated, applied[shown], fits[shown], i, name, rows, truth)
        found.add("rows", *_listed(stated, applied[shown], i, name, rows))
    return found


def _interval(
    name: str, i: int, rows: np.ndarray, truth: np.ndarray, fit: Calibration, prediction: Prediction
) -> dict[str, Any]:
    assert prediction.lower is not None and prediction.upper is not None
    lower, upper = (ends[rows, i].double().numpy() for ends in (prediction.lower, prediction.upper))
    low, high = coverage_range(fit.rows[i], len(truth), fit.level)
    width = float((upper - lower).mean())
    return {
        "target": name,
        "level": fit.level,
        "score": fit.score,
        "rows_calibrated": fit.rows[i],
        "rows": len(truth),
        "coverage": float(((truth >= lower) & (truth <= upper)).mean()),
        "low": low,
        "high": high,
        # too few rows for the level: the interval is infinite
        "mean_width": width if np.isfinite(width) else None,
    }


def _normal(
    before: Prediction, after: Prediction, i: int, rows: np.ndarray, truth: np.ndarray, level: float
) -> dict[str, float]:
    """Return the coverage of value +- quantile x standard deviation, which holds for normal errors."""
    needed = float(norm.ppf((1 + level) / 2))
    found = {}
    for stage, prediction in zip(STAGES, (before, after), strict=True):
        if prediction.std is not None:
            error = np.abs(truth - prediction.value[rows, i].double().numpy())
            found[f"normal_{stage}"] = float((error <= needed * prediction.std[rows, i].double().numpy()).mean())
    return found


def _stages(
    found: Found,
    stated: Stated,
    applied: Prediction,
    fit: Calibration,
    i: int,
    name: str,
    rows: np.ndarray,
    truth: np.ndarray,
) -> None:
    """Measure the standard deviation of a target before and after calibration, where it has one."""
    if stated.tested.std is None or applied.std is None:
        return
    value = stated.tested.value[rows, i].double().numpy()
    said = stated.tested.std[rows, i].double().numpy()
    if not (said > 0).any() or fit.factor[i] == 0:
        return
    # a row of no uncertainty at all would be infinitely unlikely
    before = np.maximum(said, said[said > 0].min())
    stages = dict(zip(STAGES, (before, before * fit.factor[i]), strict=True))
    for stage, std in stages.items():
        measured = gaussian(value, std, truth)
        found.add("calibration", {"target": name, "stage": stage, "factor": fit.factor[i], **measured})
        found.values |= {f"{name}/{key}_{stage}": figure for key, figure in measured.items()}
    error = np.abs(truth - value)
    found.risk(name, said, error, "mean absolute error")
    if len(error) > 2 and np.ptp(said) > 0 and np.ptp(error) > 0:
        found.values[f"{name}/error_std_spearman"] = float(spearmanr(said, error).statistic)
    curves = {stage: observed((truth - value) / std, LEVELS) for stage, std in stages.items()}
    found.plots[f"calibration_{name}"] = _curves(name, curves)
    found.plots[f"error_std_{name}"] = _scatter(name, stages["after"], error)


def _listed(stated: Stated, applied: Prediction, i: int, name: str, rows: np.ndarray) -> list[Row]:
    columns = {
        "truth": stated.targets,
        "value": applied.value,
        "std": applied.std,
        "lower": applied.lower,
        "upper": applied.upper,
    }
    kept = {key: column[:, i].tolist() for key, column in columns.items() if column is not None}
    return [
        {"id": stated.ids[j], "target": name, **{key: column[j] for key, column in kept.items()}}
        for j in np.flatnonzero(rows).tolist()
    ]


def _curves(name: str, curves: dict[str, np.ndarray]) -> Draw:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="0.7", lw=1)
        for stage, curve in curves.items():
            axes.plot(LEVELS, curve, label=f"{stage} calibration")
        axes.set(xlabel="promised coverage", ylabel="observed coverage", title=name)
        axes.legend(fontsize=7)

    return draw


def _scatter(name: str, std: np.ndarray, error: np.ndarray) -> Draw:
    def draw(axes: Axes) -> None:
        axes.scatter(std, error, s=8, alpha=0.6)
        end = float(std.max())
        for times in (1, 2):
            axes.plot([0, end], [0, times * end], color="0.7", lw=1)
        axes.set(xlabel="calibrated standard deviation (lines: one and two of it)", ylabel="absolute error", title=name)

    return draw
