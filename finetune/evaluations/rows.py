"""The labelled rows that a predictor is tested on, and what it loses on each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor

from finetune.data import check_schema
from finetune.evaluations.base import Subject
from finetune.loading import PropertyModel
from finetune.metrics import evaluate
from finetune.units import describe
from shards.errors import ConfigError, DataError, suggest
from shards.schema import Sample


@dataclass(frozen=True)
class Rows:
    """N samples of which a target is known.

    Attributes
    ----------
    samples : list of Sample
        With the modalities of the predictor.
    targets : Tensor
        (N, T), NaN where unknown.
    offset : Tensor
        (N, T), the part of the targets that the predictor is given (``delta``); zeros without.
    """

    samples: list[Sample]
    targets: Tensor
    offset: Tensor

    @property
    def learned(self) -> Tensor:
        """What the predictor's head is to say (N, T), NaN where unknown."""
        return self.targets - self.offset

    def at(self, chosen: list[int]) -> Rows:
        """Return some of the rows."""
        return Rows([self.samples[i] for i in chosen], self.targets[chosen], self.offset[chosen])


def rows_of(subject: Subject, part: str) -> Rows:
    """Return the rows of a part that the predictor can be tested on.

    A target and one of its modalities are known, and every label that it corrects.
    """
    model, dataset = predictor_of(subject), subject.dataset
    names, delta = model.info.targets, model.info.delta
    for name in (*names, *delta):
        if name not in dataset.manifest.labels:
            raise ConfigError(f"the data set has no label '{name}'", why=suggest(name, dataset.manifest.labels))
    check_schema(dict(model.specs), dataset, model.specs)
    restricted = dataset.select(list(model.specs))
    found = [restricted[int(position)] for position in dataset.positions(subject.split, part)]
    found = [
        sample
        for sample in found
        if sample.modalities and sample.labels.keys() & set(names) and sample.labels.keys() >= set(delta)
    ]
    if len(found) < 2:
        what = f"{list(names)} and {list(delta)}" if delta else str(list(names))
        raise DataError(f"part '{part}' has {len(found)} samples with {what}", where=dataset.location)
    targets = labels_of(found, names)
    return Rows(found, targets, labels_of(found, delta) if delta else torch.zeros_like(targets))


def labels_of(samples: Sequence[Sample], names: Sequence[str]) -> Tensor:
    """Return labels (N, T) of N samples, NaN where unknown."""
    return torch.tensor([[sample.labels.get(name, nan) for name in names] for sample in samples], dtype=torch.float32)


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


def classes(task: str, values: Tensor) -> Tensor:
    """Return the predicted class of each value: a probability of class 1, or a class number."""
    return (values > 0.5).float() if task == "classification" else values


@dataclass(frozen=True)
class Measure:
    """What is lost on a row, and its mean, the headline figure: the lower, the better.

    Of numbers it is the absolute error, of classes whether it is wrong; of several targets the mean over those that
    are known. Errors in different units have no mean: each is then divided by the target's standard deviation in
    training.

    Attributes
    ----------
    task : str
        See `finetune.heads.base.Head`.
    names : tuple of str
        Of the T targets.
    scale : Tensor or None
        (T,) by which absolute errors are divided.
    """

    task: str
    names: tuple[str, ...]
    scale: Tensor | None = None

    @classmethod
    def of(cls, model: PropertyModel, train: Callable[[], Rows]) -> Measure:
        """Return the measure of a predictor; ``train`` gives its training rows where they are needed."""
        task, names = model.info.task, model.info.targets
        if task != "regression" or len({describe(name)[1] for name in names}) == 1:
            return cls(task, names)
        targets = train().targets.double()
        spread = torch.stack([column[~column.isnan()].std(correction=0) for column in targets.T])
        if not (spread > 0).all():
            name = names[int((~(spread > 0)).nonzero()[0])]
            raise DataError(f"'{name}' has one value in training: errors cannot be told in its standard deviations")
        return cls(task, names, spread.float())

    @property
    def headline(self) -> str:
        """The name of the figure."""
        return "error_rate" if self.task != "regression" else "mae" if self.scale is None else "mae_over_std"

    @property
    def text(self) -> str:
        """What a reader must know of it."""
        if self.scale is not None:
            return "mae_over_std: absolute errors over the target's standard deviation in training, as units differ. "
        return "" if len(self.names) == 1 else f"{self.headline} is the mean over {len(self.names)} targets. "

    def losses(self, values: Tensor, targets: Tensor) -> Tensor:
        """Return what is lost on each row (N,), of which a target is known.

        Parameters
        ----------
        values, targets : Tensor
            (N, T): values as in `finetune.prediction.Prediction`, targets with NaN where unknown.
        """
        known, truth = ~targets.isnan(), targets.nan_to_num()
        lost = (values - truth).abs() if self.task == "regression" else (classes(self.task, values) != truth).float()
        if self.scale is not None:
            lost = lost / self.scale
        return (lost * known).sum(1).double() / known.sum(1)

    def mean(self, values: Tensor, targets: Tensor) -> float:
        """Return the headline figure."""
        return float(self.losses(values, targets).mean())

    def metrics(self, values: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the headline figure and the metrics of the task, means over the targets where these share a unit."""
        found = evaluate(self.task, values, targets)
        if self.scale is not None:
            columns = [evaluate(self.task, v[:, None], t[:, None]) for v, t in zip(values.T, targets.T, strict=True)]
            each = {f"mae_{name}": column["mae"] for name, column in zip(self.names, columns, strict=True)}
            found = {"r2": found["r2"], **each}
        return {self.headline: self.mean(values, targets)} | {k: v for k, v in found.items() if k != self.headline}


def trivial(task: str, train: Rows, rows: Rows) -> Tensor:
    """Return what a predictor that sees nothing but what it is given says (N, T): the training mean, or mode."""
    learned = train.learned
    if task == "regression":
        return rows.offset + learned.nanmean(0)
    columns = [column[~column.isnan()].mode().values for column in learned.T]
    return torch.stack(columns).expand(len(rows.samples), -1)
