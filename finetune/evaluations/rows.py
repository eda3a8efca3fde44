"""The labelled rows that a predictor is tested on, and what it loses on each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor

from finetune.data import check_schema
from finetune.evaluations.base import Subject
from finetune.loading import PropertyModel
from finetune.metrics import evaluate
from shards.errors import ConfigError, DataError, suggest
from shards.schema import Sample

# the mean of `losses`, by task
HEADLINE = {"regression": "mae", "classification": "error_rate", "multiclass": "error_rate"}


@dataclass(frozen=True)
class Rows:
    """N samples of which a target is known.

    Attributes
    ----------
    samples : list of Sample
        With the modalities of the predictor.
    targets : Tensor
        (N, T), NaN where unknown.
    """

    samples: list[Sample]
    targets: Tensor

    def at(self, chosen: list[int]) -> Rows:
        """Return some of the rows."""
        return Rows([self.samples[i] for i in chosen], self.targets[chosen])


def rows_of(subject: Subject, part: str) -> Rows:
    """Return the rows of a part that the predictor can be tested on: a target and one of its modalities are known."""
    model, dataset = predictor_of(subject), subject.dataset
    names = model.info.targets
    for name in names:
        if name not in dataset.manifest.labels:
            raise ConfigError(f"the data set has no label '{name}'", why=suggest(name, dataset.manifest.labels))
    check_schema(dict(model.specs), dataset, model.specs)
    restricted = dataset.select(list(model.specs))
    found = [restricted[int(position)] for position in dataset.positions(subject.split, part)]
    found = [sample for sample in found if sample.labels.keys() & set(names) and sample.modalities]
    if len(found) < 2:
        raise DataError(f"part '{part}' has {len(found)} samples with {list(names)}", where=dataset.location)
    targets = [[sample.labels.get(name, nan) for name in names] for sample in found]
    return Rows(found, torch.tensor(targets, dtype=torch.float32))


def predictor_of(subject: Subject) -> PropertyModel:
    """Return the model of a subject, which is a predictor."""
    assert isinstance(subject.model, PropertyModel)
    return subject.model


def only(sample: Sample, modalities: set[str]) -> Sample:
    """Return a sample with some of its modalities; the others are absent, whatever they held."""
    return replace(
        sample,
        arrays={name: value for name, value in sample.arrays.items() if name in modalities},
        text={name: value for name, value in sample.text.items() if name in modalities},
    )


def losses(task: str, values: Tensor, targets: Tensor) -> Tensor:
    """Return what is lost on each row (N,): the absolute error, or 1 where the class is wrong; the mean over T known.

    Parameters
    ----------
    task : str
        See `finetune.heads.base.Head`.
    values, targets : Tensor
        (N, T): values as in `finetune.prediction.Prediction`, targets with NaN where unknown.
    """
    known = ~targets.isnan()
    truth = targets.nan_to_num()
    lost = (values - truth).abs() if task == "regression" else (classes(task, values) != truth).float()
    return (lost * known).sum(1).double() / known.sum(1)


def classes(task: str, values: Tensor) -> Tensor:
    """Return the predicted class of each value: a probability of class 1, or a class number."""
    return (values > 0.5).float() if task == "classification" else values


def metrics(task: str, values: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the headline figure (the lower, the better) and the metrics of the task."""
    found = evaluate(task, values, targets)
    return {HEADLINE[task]: float(losses(task, values, targets).mean()), **found}


def trivial(task: str, train: Tensor, count: int) -> Tensor:
    """Return what a predictor that sees nothing says (N, T) of N rows: the training mean, or the commonest class."""
    if task == "regression":
        return train.nanmean(0).expand(count, -1)
    columns = [column[~column.isnan()].mode().values for column in train.T]
    return torch.stack(columns).expand(count, -1)
