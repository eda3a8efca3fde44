"""All metrics of a predictor, target by target, each with the rows and the positives that it stands on."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import numpy as np
from matplotlib.axes import Axes
from pydantic import Field
from torch import Tensor

from finetune.evaluations.base import EVALUATIONS, Draw, Evaluation, Findings, Subject
from finetune.evaluations.rows import predictor_of, rows_of
from finetune.loading import PropertyModel
from finetune.metrics import macro, measure
from finetune.prediction import Prediction
from pretrain.plots import Row


@EVALUATIONS.register("metrics")
class Metrics(Evaluation):
    """Metrics of numbers, classes, rankings, and of affinities where they are asked for.

    Attributes
    ----------
    ks : tuple of int
        Of precision and recall among the k highest probabilities of a class.
    affinity : bool
        Report what tables of binding affinity do: concordance index, and both things that are called r2m.
    """

    wants: ClassVar[type] = PropertyModel

    kind: Literal["metrics"] = "metrics"
    ks: tuple[int, ...] = Field((10, 100), min_length=1)
    affinity: bool = False

    def __call__(self, subject: Subject) -> Findings:
        """Measure every target of which a row is known."""
        model, rows = predictor_of(subject), rows_of(subject, subject.part)
        prediction, task = model.estimate(rows.samples), model.info.task
        found = {
            name: self._measure(task, prediction, rows.targets, i)
            for i, name in enumerate(model.info.targets)
            if not rows.targets[:, i].isnan().all()
        }
        table: list[Row] = [{"target": name, **figures} for name, figures in found.items()]
        if len(found) > 1:
            table.append({"target": "mean over targets", **macro(found.values())})
        values = {f"{name}/{key}": value for name, figures in found.items() for key, value in figures.items()}
        return Findings(
            title=f"Metrics on part '{subject.part}' of split '{subject.split}'",
            text=TEXT[task],
            values={key: value for key, value in values.items() if not np.isnan(value)},
            tables={"metrics": table},
            plots=_curves(prediction, rows.targets, model.info.targets) if task == "classification" else {},
        )

    def _measure(self, task: str, prediction: Prediction, targets: Tensor, i: int) -> dict[str, float]:
        from finetune.metrics.affinity import affinity
        from finetune.metrics.ranking import precision_at_k, recall_at_k

        figures = measure(task, prediction, targets, i)
        value, truth = _known(prediction, targets, i)
        if task == "classification":
            for k in self.ks:
                figures[f"precision_at_{k}"] = precision_at_k(value, truth > 0, k)
                figures[f"recall_at_{k}"] = recall_at_k(value, truth > 0, k)
        if self.affinity and task == "regression":
            figures |= affinity(value, truth)
        return figures


TEXT = {
    "regression": "r2 is 1 - SS_res / SS_tot: negative where the mean of the values would do better, and not the "
    "square of pearson, which sees no shift. mape is a fraction, over the rows whose value is not 0.",
    "classification": "Read average_precision beside prevalence, which is its value without skill; auprc_trapezoid "
    "flatters and stands here to be compared with tables that report it. precision, recall and f1 are those of class 1 "
    "at one half, f1_macro, f1_micro and f1_weighted average over both classes; fmax is the best F1 of all thresholds. "
    "The mean over targets hides those with few positives.",
    "multiclass": "precision_macro, recall_macro and f1_macro are means over classes; auroc is that of each class "
    "against the others, the mean over the classes that the rows have. kappa is 0 where the agreement is "
    "that of chance.",
}


def _known(prediction: Prediction, targets: Tensor, i: int) -> tuple[np.ndarray, np.ndarray]:
    known = ~targets[:, i].isnan()
    return prediction.value[known, i].double().numpy(), targets[known, i].double().numpy()


def _curves(prediction: Prediction, targets: Tensor, names: tuple[str, ...]) -> dict[str, Draw]:
    """Return the precision-recall curve of each target that has positives."""
    columns = {name: _known(prediction, targets, i) for i, name in enumerate(names)}
    return {
        f"precision_recall_{name}": partial(_draw, probability=probability, truth=truth, name=name)
        for name, (probability, truth) in columns.items()
        if truth.any()
    }


def _draw(axes: Axes, *, probability: np.ndarray, truth: np.ndarray, name: str) -> None:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(truth, probability)
    # between two thresholds the precision is that of the next one: steps, no slopes
    axes.step(recall, precision, where="post")
    prevalence = float(truth.mean())
    axes.axhline(prevalence, color="0.6", lw=1, label=f"prevalence {prevalence:.3f}")
    axes.set(xlabel="recall", ylabel="precision", title=name, xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=7)
