"""Extrapolation: how a predictor does above the highest value that it was trained on.

The measures of Segal et al. (bilinear transduction, arXiv:2502.05970), for any predictor.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import numpy as np
from matplotlib.axes import Axes

from finetune.evaluations.base import EVALUATIONS, Evaluation, Findings, Subject
from finetune.evaluations.rows import predictor_of, rows_of
from finetune.loading import PropertyModel
from finetune.metrics.ranking import precision_at_k
from pretrain.plots import Row
from shards.errors import ConfigError, DataError


@EVALUATIONS.register("ood")
class OutOfRange(Evaluation):
    """Errors inside and above the training range, and how well the rows above it are found.

    Attributes
    ----------
    in_range : str
        A part that is reported beside the tested one: on a split by ``top_quantile`` the tested part has no row
        inside the range.
    """

    wants: ClassVar[type] = PropertyModel

    kind: Literal["ood"] = "ood"
    in_range: str = "val"

    def __call__(self, subject: Subject) -> Findings:
        """Measure every target."""
        model = predictor_of(subject)
        if model.info.task != "regression":
            raise ConfigError(f"a {model.info.task} has no range to leave", do="evaluate a predictor of a number")
        train = rows_of(subject, "train").targets.numpy()
        parts = [rows_of(subject, part) for part in dict.fromkeys((self.in_range, subject.part))]
        predicted = np.concatenate([model.estimate(rows.samples).value.numpy() for rows in parts])
        truth = np.concatenate([rows.targets.numpy() for rows in parts])
        table = [_row(name, train[:, i], truth[:, i], predicted[:, i]) for i, name in enumerate(model.info.targets)]
        table = [row for row in table if row["n_ood"]]
        if not table:
            raise DataError(
                f"part '{subject.part}' of split '{subject.split}' has no value above the training maximum",
                where=subject.dataset.location,
                do=f"matloom shards split FOLDER extremes --by top_quantile --set label={model.info.targets[0]}",
            )
        names = ("mae_id", "mae_ood", "recall", "precision", "precision_of_top")
        return Findings(
            title=f"Extrapolation above the training range, split '{subject.split}'",
            text=f"Rows of the parts '{self.in_range}' and '{subject.part}': OOD are those whose value is above the "
            "maximum of the training part, ID the others. recall (TPR): the share of OOD rows that are predicted above "
            "that maximum; precision: the share of rows predicted above it that are OOD (empty where none is); "
            "precision_of_top: the share of OOD among the as many highest predictions as there are OOD rows, which "
            "looks at the order alone; chance: OOD among all rows. A predictor that averages training values (forests, "
            "neighbours) cannot exceed the maximum: its recall is 0 whatever its error.",
            values={
                f"{row['target']}/{name}": float(row[name]) for row in table for name in names if row[name] is not None
            },
            tables={"ood": table},
            plots={
                f"ood_{row['target']}": partial(
                    _draw, truth=truth[:, i], predicted=predicted[:, i], threshold=row["threshold"], name=row["target"]
                )
                for row in table
                for i in [model.info.targets.index(row["target"])]
            },
        )


def _row(name: str, train: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> Row:
    known = ~np.isnan(truth)
    return {"target": name, **extrapolation(float(np.nanmax(train)), truth[known], predicted[known])}


def extrapolation(threshold: float, truth: np.ndarray, predicted: np.ndarray) -> Row:
    """Measure predictions (N,) of values (N,) of which some are above ``threshold``, the training maximum."""
    ood, found = truth > threshold, predicted > threshold
    error, count = np.abs(predicted - truth), int(ood.sum())
    return {
        "threshold": threshold,
        "n_id": int((~ood).sum()),
        "n_ood": count,
        "mae_id": _mean(error[~ood]),
        "mae_ood": _mean(error[ood]),
        "recall": _mean(found[ood]),
        "precision": _mean(ood[found]),
        "precision_of_top": precision_at_k(predicted, ood, count) if count else None,
        "chance": count / len(truth),
        "highest_prediction": float(predicted.max()),
        "highest_value": float(truth.max()),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _draw(axes: Axes, *, truth: np.ndarray, predicted: np.ndarray, threshold: float, name: str) -> None:
    ood = truth > threshold
    axes.scatter(truth[~ood], predicted[~ood], s=10, label="within the training range")
    axes.scatter(truth[ood], predicted[ood], s=14, color="tab:red", label="above it")
    axes.axvline(threshold, color="0.6", lw=1)
    axes.axhline(threshold, color="0.6", lw=1)
    low, high = float(np.nanmin(truth)), float(np.nanmax(truth))
    axes.plot([low, high], [low, high], color="0.8", lw=1)
    axes.set(xlabel=name, ylabel="predicted")
    axes.legend(fontsize=7)
