"""Choosing hyper-parameters by folds of the training rows."""

from __future__ import annotations

from typing import Any

from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

from finetune.estimators.base import REGRESSION


def chosen(pipeline: Any, grid: dict[str, list[Any]], *, task: str, seed: int, folds: int) -> Any:
    """Return a search over a grid by inner folds: mean absolute error, or log loss of classes.

    Where the rows allow no two folds, the pipeline as it is.
    """
    if folds < 2:
        return pipeline
    if task == REGRESSION:
        return GridSearchCV(
            pipeline, grid, scoring="neg_mean_absolute_error", cv=KFold(folds, shuffle=True, random_state=seed)
        )
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return GridSearchCV(pipeline, grid, scoring="neg_log_loss", cv=parts)
