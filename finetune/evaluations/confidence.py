"""Uncertainty of classes: whether probabilities are frequencies, before and after a temperature."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes

from finetune.calibration import Calibration, Task
from finetune.evaluations.base import Draw
from finetune.evaluations.stated import Found, Stated
from finetune.metrics.uncertainty import classes, reliability
from finetune.prediction import Prediction
from pretrain.plots import Row
from shards.errors import ConfigError

TEXT = (
    "calibration: expected calibration error in 15 bins, Brier score and negative log likelihood of the probabilities, "
    "before and after the temperature that the calibration part asks for; it changes no decision. reliability: of each "
    "bin of confidence, the share that is right. risk_coverage: the error rate of the share of rows of highest "
    "confidence."
)


def classes_found(stated: Stated) -> Found:
    """Measure every target."""
    if stated.task == "multiclass" and stated.tested.probabilities is None:
        raise ConfigError("the predictor says no probabilities of its classes", do="evaluate one that does")
    found = Found(TEXT)
    fit = Calibration.fit(stated.held, stated.held_targets, task=cast(Task, stated.task))
    stages = {"before": stated.tested, "after": fit.apply(stated.tested)}
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
        found.add("rows", *_listed(stated.ids, name, rows, truth, probabilities))
    return found


def _probabilities(prediction: Prediction, i: int) -> np.ndarray:
    """Return the probabilities (N, C) of the classes of target ``i``."""
    if prediction.probabilities is not None:
        return prediction.probabilities.double().numpy()
    one = prediction.value[:, i].double().numpy()
    return np.stack([1 - one, one], axis=1)


def _listed(ids: Any, name: str, rows: np.ndarray, truth: np.ndarray, probabilities: np.ndarray) -> list[Row]:
    return [
        {
            "id": ids[j],
            "target": name,
            "truth": int(truth[k]),
            "value": int(probabilities[k].argmax()),
            "confidence": float(probabilities[k].max()),
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
