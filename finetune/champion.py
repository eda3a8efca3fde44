"""The predictor that a comparison registers: the best run of its best row, or all runs of it as an ensemble."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor

from finetune.adapt.base import Adaptation
from finetune.calibration import Calibration, Task
from finetune.config import FinetuneRecipe, RowConfig
from finetune.data import TargetData
from finetune.ensembles import PredictorEnsemble
from finetune.metrics import SELECTION, better, evaluate, worst
from finetune.prediction import Prediction
from finetune.predictor import AnyPredictor, Predictor
from finetune.rows import Outcome


@dataclass(frozen=True)
class Member:
    """One run of a row: its fold ("" of one split), its seed, what was trained, and its metrics."""

    fold: str
    seed: int
    predictor: Predictor
    validation: dict[str, float]
    test: dict[str, float]


@dataclass(frozen=True)
class Best:
    """What is registered: its score on the validation part, and how it was made."""

    score: float
    row: RowConfig
    adaptation: Adaptation
    members: tuple[Member, ...]
    predictor: AnyPredictor


@dataclass
class Champion:
    """Keeps the best of the rows that it is shown.

    Of single runs that is the one of the best validation metric. Of an ensemble it is the row whose members have the
    best mean: members of other folds have no validation part in common.
    """

    recipe: FinetuneRecipe
    task: str
    best: Best | None = None
    _members: list[Member] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether anything is registered: a predictor of one fold is not."""
        return self.recipe.ensemble is not None or self.recipe.folds is None

    def show(self, row: RowConfig, plan: Adaptation, fold: str, seed: int, outcome: Outcome) -> None:
        """Look at one run."""
        assert outcome.predictor is not None
        metric = SELECTION[self.task]
        if self.recipe.ensemble is None and not better(metric, outcome.validation[metric], self._score()):
            return
        predictor = copy.deepcopy(outcome.predictor).cpu()
        member = Member(fold, seed, predictor, outcome.validation, outcome.test)
        if self.recipe.ensemble is None:
            self.best = Best(outcome.validation[metric], row, plan, (member,), predictor)
        else:
            self._members.append(member)

    def close(self, row: RowConfig, plan: Adaptation) -> None:
        """Take note that a row has no further runs."""
        members, self._members = tuple(self._members), []
        if self.recipe.ensemble is None or not members:
            return
        metric = SELECTION[self.task]
        score = fmean(member.validation[metric] for member in members)
        if better(metric, score, self._score()):
            ensemble = PredictorEnsemble([member.predictor for member in members], self.recipe.ensemble.how)
            self.best = Best(score, row, plan, members, ensemble.eval())

    def _score(self) -> float:
        return self.best.score if self.best else worst(SELECTION[self.task])


def held_out(best: Best, recipe: FinetuneRecipe, data: Mapping[str, TargetData]) -> tuple[Prediction, Tensor]:
    """Return predictions of rows that their predictor was not fitted to, and their targets (N, T).

    Of one split that is the validation part. Of folds, each row of the first round is predicted by the members of the
    fold that held it out (out of fold).
    """
    if recipe.folds is None:
        (rows,) = data.values()
        return _predicted(best.predictor, rows, "val", best.row, recipe), rows.parts["val"].targets
    predictions, targets = [], []
    assert recipe.ensemble is not None
    for fold in list(data)[: len(data) // recipe.folds.repeats]:
        mine = [member.predictor for member in best.members if member.fold == fold]
        ensemble = PredictorEnsemble(mine, recipe.ensemble.how).eval()
        predictions.append(_predicted(ensemble, data[fold], "test", best.row, recipe))
        targets.append(data[fold].parts["test"].targets)
    return Prediction.join(predictions), torch.cat(targets)


def _predicted(
    predictor: AnyPredictor, data: TargetData, part: str, row: RowConfig, recipe: FinetuneRecipe
) -> Prediction:
    batches = data.batches(row.modalities, part, recipe.deltas)
    return Prediction.join([predictor.predict(batch.to("cpu")) for batch in batches])


def measured(
    best: Best, recipe: FinetuneRecipe, data: Mapping[str, TargetData], task: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics of what is registered, and its calibration.

    ``val_`` are those of the validation part; of folds, the members' mean, beside ``fold_`` out of fold.
    """
    prediction, targets = held_out(best, recipe, data)
    found = Calibration.fit(prediction, targets, level=recipe.interval, task=cast(Task, task))
    if recipe.folds is not None:
        metrics = {f"fold_{name}": value for name, value in evaluate(task, prediction.value, targets).items()}
        metrics |= {f"val_{name}": value for name, value in _mean([m.validation for m in best.members]).items()}
    elif recipe.ensemble is not None:
        metrics = {f"val_{name}": value for name, value in evaluate(task, prediction.value, targets).items()}
    else:
        metrics = {f"val_{name}": value for name, value in best.members[0].validation.items()}
    return metrics, found.model_dump(mode="json")


def _mean(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(run[name] for run in runs) for name in runs[0]}
