"""Late fusion as a row of a recipe: an estimator a modality, weighted by their out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from finetune.cross_validation import EstimatorModel, take
from finetune.estimators.base import CLASSIFICATION, ESTIMATORS, MULTICLASS, Estimator
from finetune.late_fusion import LateFused, LateFusionOptions
from shards.errors import ConfigError, DataError
from shards.plugins import Options


class LateFusionRow(Options, LateFusionOptions):
    """``{kind = "late_fusion", method = "nnls", branch = "random_forest"}``.

    Attributes
    ----------
    branch : str or table
        The estimator that is fitted to each modality's frozen vectors.
    folds : int
        Inner folds of the training part, by whole groups, to whose held-out predictions the weights are fitted.
    """

    pretrained: ClassVar[bool] = False

    kind: Literal["late_fusion"] = "late_fusion"
    branch: str | dict[str, Any] = "linear_probe"
    folds: int = Field(5, ge=2)

    def estimator(self) -> Estimator:
        """Return the typed options of the branches."""
        return ESTIMATORS.options({"kind": self.branch} if isinstance(self.branch, str) else self.branch)

    def check(self, modalities: Sequence[str]) -> None:
        """Raise `ConfigError` where there is nothing to weigh."""
        self.estimator()
        if len(modalities) < 2:
            raise ConfigError(
                f"late fusion weighs one model a modality, and the row has {list(modalities)}",
                where="rows.*.modalities",
                do='modalities = ["crystal", "dos"]',
            )

    def fit(
        self, features: Mapping[str, np.ndarray], targets: np.ndarray, *, groups: Sequence[str], task: str, seed: int
    ) -> list[LateFused]:
        """Fit branches and weights to N rows, for each of T targets.

        Parameters
        ----------
        features : mapping of str to ndarray
            Modality to (N, F), NaN throughout where it is absent.
        targets : ndarray
            (N, T), NaN where unknown.
        groups : sequence of str
            Of the N rows: those of one group are in one inner fold.
        task : str
            See `finetune.heads.base.Head`.
        seed : int
            Of everything random.
        """
        if task == MULTICLASS:
            raise ConfigError(
                "numbers of classes have no weighted mean", where="rows.*.strategy", do="another strategy"
            )
        fitted = []
        for values in targets.T.astype(np.float64):
            known = np.flatnonzero(~np.isnan(values))
            mine = [groups[int(i)] for i in known]
            if len(set(mine)) < self.folds:
                raise DataError(
                    f"{len(set(mine))} groups of training rows cannot fill {self.folds} inner folds",
                    where="rows.*.strategy.folds",
                    do="fewer folds, or more labels",
                )
            make = {name: lambda: EstimatorModel(self.estimator(), task=task, seed=seed) for name in features}
            model = LateFused(make, self, groups=mine, folds=self.folds, seed=seed)
            fitted.append(model.fit(take(features, known), values[known]))
        return fitted

    @staticmethod
    def predict(fitted: Sequence[LateFused], features: Mapping[str, np.ndarray], *, task: str) -> Tensor:
        """Return predictions (N, T); probabilities stay between 0 and 1, whatever the weights add up to."""
        values = torch.from_numpy(np.stack([model.predict(features) for model in fitted], axis=1)).float()
        return values.clamp(0, 1) if task == CLASSIFICATION else values
