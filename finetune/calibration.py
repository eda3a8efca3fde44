"""Calibration on held-out rows: intervals that hold what they promise, honest standard deviations and probabilities."""

from __future__ import annotations

from math import ceil, exp, inf
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from finetune.prediction import Prediction
from shards.errors import ConfigError, DataError
from shards.schema import Strict

Task = Literal["regression", "classification", "multiclass"]
Score = Literal["absolute", "normalised", "quantile", "probability", "temperature"]
# natural logarithms of the temperatures that are tried: a twentieth to twenty
TEMPERATURES = (-3.0, 3.0)


class Calibration(Strict):
    """What the rows of a validation part say of a predictor's uncertainty; one entry a target.

    Numbers get split-conformal intervals (Papadopoulos et al., ECML 2002; Lei et al., JASA 113 (2018) 1094): with
    rows that are exchangeable with those of the fit, the truth lies in the interval with a probability of at least
    ``level``, whatever the predictor is worth. Under shift nothing is promised. Classes get sets with the same promise,
    of all classes that are likely enough (LAC: Sadinle, Lei and Wasserman, JASA 114 (2019) 223), and temperature
    scaling (Guo et al., ICML 2017), which changes no decision and no order of classes.

    Attributes
    ----------
    task : str
        See `finetune.heads.base.Head`.
    level : float
        Probability with which an interval, or a set of classes, is to hold the truth.
    score : str
        What was ranked: ``absolute`` error (every interval has one width), error ``normalised`` by the head's standard
        deviation, how far the truth is outside the head's ``quantile`` interval (Romano et al., NeurIPS 2019), how far
        the ``probability`` of the true class is from 1, or nothing (``temperature``; stored before there were sets).
    rows : tuple of int
        Rows with a known target.
    quantile : tuple of float or None
        The finite-sample quantile of the scores. None where it would take more rows than there were: the interval
        is infinite then, and every class in the set.
    factor : tuple of float
        By which standard deviations are multiplied: a with a^2 = mean z^2 (Laves et al., MIDL 2020).
    floor : tuple of float
        The smallest standard deviation of the rows; a smaller one in use is no reason for a narrower interval.
    temperature : tuple of float
        By which logits are divided.
    """

    task: Task = "regression"
    level: float = Field(0.9, gt=0, lt=1)
    score: Score
    rows: tuple[int, ...]
    quantile: tuple[float | None, ...] = ()
    factor: tuple[float, ...] = ()
    floor: tuple[float, ...] = ()
    temperature: tuple[float, ...] = ()

    @classmethod
    def fit(
        cls, prediction: Prediction, targets: Tensor, *, level: float = 0.9, task: Task | None = None
    ) -> Calibration:
        """Fit on rows that the predictor was not trained on.

        Parameters
        ----------
        prediction : Prediction
            Of N rows, not yet calibrated.
        targets : Tensor
            (N, T), NaN where unknown.
        level : float
            Of the intervals.
        task : str, optional
            Default: ``multiclass`` where there are probabilities, else ``regression``; a probability of class 1 cannot
            be told from a number.
        """
        task = task or ("regression" if prediction.probabilities is None else "multiclass")
        known = ~targets.isnan()
        rows = tuple(int(count) for count in known.sum(0))
        if task != "regression":
            logits, unlikely = _logits(prediction, task), _unlikely(prediction, task)
            _check_classes(targets[known], logits.shape[2])
            true = targets.nan_to_num().long()[:, :, None]
            scores = unlikely.gather(2, true)[:, :, 0]
            found = [(i, here, logits[here, i], targets[here, i]) for i, here in enumerate(known.T)]
            return cls(
                task=task,
                level=level,
                score="probability",
                rows=rows,
                quantile=tuple(conformal_quantile(scores[here, i], level) for i, here, _, _ in found),
                temperature=tuple(_temperature(mine, classes) for _, _, mine, classes in found),
            )
        score = _score_of(prediction, known)
        scores, std = _scores(score, prediction, targets), prediction.std
        columns = list(enumerate(known.T))
        return cls(
            level=level,
            score=score,
            rows=rows,
            quantile=tuple(conformal_quantile(scores[here, i], level) for i, here in columns),
            factor=() if std is None else tuple(variance_factor(prediction, targets, i) for i, _ in columns),
            floor=() if score != "normalised" or std is None else tuple(_least(std[here, i]) for i, here in columns),
        )

    def apply(self, prediction: Prediction) -> Prediction:
        """Return a prediction (not yet calibrated) with intervals and standard deviations set right.

        Of classes, with sets, and probabilities set right.

        Raises
        ------
        ConfigError
            Where the calibration was fitted to a predictor of another form.
        """
        if self.task != "regression":
            return self._cooled(prediction)
        if prediction.value.shape[1] != len(self.rows):
            raise ConfigError(
                f"the calibration is of {len(self.rows)} targets, not {prediction.value.shape[1]}",
                do="fit it on this predictor",
            )
        if (self.score == "normalised" or self.factor) and prediction.std is None:
            raise ConfigError(
                "the calibration scales standard deviations, the prediction has none", do="fit it on this predictor"
            )
        lower, upper = self._interval(prediction)
        std = None if prediction.std is None else prediction.std * prediction.std.new_tensor(self.factor)
        return prediction._replace(lower=lower, upper=upper, std=std)

    def _interval(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        width = prediction.value.new_tensor([inf if q is None else q for q in self.quantile])
        if self.score == "quantile":
            if prediction.lower is None or prediction.upper is None:
                raise ConfigError("the calibration widens intervals, the prediction has none")
            lower, upper = prediction.lower - width, prediction.upper + width
            # a negative width can turn an interval inside out
            middle = ((prediction.lower + prediction.upper) / 2).where(lower > upper, lower)
            return middle, torch.where(lower > upper, middle, upper)
        if self.score == "normalised" and prediction.std is not None:
            width = width * torch.maximum(prediction.std, prediction.std.new_tensor(self.floor))
        return prediction.value - width, prediction.value + width

    def _cooled(self, prediction: Prediction) -> Prediction:
        logits = _logits(prediction, self.task)
        if logits.shape[1] != len(self.rows):
            raise ConfigError(f"the calibration is of {len(self.rows)} targets, not {logits.shape[1]}")
        if self.quantile:
            # of the probabilities as they were said: with a temperature that was fitted to the same rows, these would
            # no longer be exchangeable with others
            most = logits.new_tensor([inf if q is None else q for q in self.quantile])
            prediction = prediction._replace(sets=_unlikely(prediction, self.task) <= most[:, None])
        cooled = torch.softmax(logits / logits.new_tensor(self.temperature)[:, None], dim=2)
        if self.task == "multiclass":
            return prediction._replace(probabilities=cooled[:, 0].to(prediction.value.dtype))
        return prediction._replace(value=cooled[:, :, 1].to(prediction.value.dtype))


def conformal_quantile(scores: Tensor, level: float) -> float | None:
    """Return the ceil((n + 1) level)-th smallest of n scores, None where there are too few for one."""
    # (n + 1) level is a whole number for common levels, which rounding must not lift to the next
    rank = ceil((len(scores) + 1) * level - 1e-9)
    return float(scores.double().kthvalue(rank).values) if rank <= len(scores) else None


def variance_factor(prediction: Prediction, targets: Tensor, target: int = 0) -> float:
    """Return a with a^2 = mean z^2 over the known rows of one target, z the error in standard deviations."""
    assert prediction.std is not None
    value, std, truth = prediction.value[:, target], prediction.std[:, target], targets[:, target]
    here = ~truth.isnan() & (std > 0)
    z = (truth[here].double() - value[here]) / std[here]
    return float(z.square().mean().sqrt()) if len(z) else 1.0


def _score_of(prediction: Prediction, known: Tensor) -> Score:
    if prediction.std is not None and bool((prediction.std[known] > 0).all()):
        return "normalised"
    if prediction.std is None and prediction.lower is not None and prediction.upper is not None:
        return "quantile"
    return "absolute"


def _scores(score: Score, prediction: Prediction, targets: Tensor) -> Tensor:
    """Return what is ranked (N, T)."""
    if score == "quantile":
        assert prediction.lower is not None and prediction.upper is not None
        return torch.maximum(prediction.lower - targets, targets - prediction.upper)
    error = (targets - prediction.value).abs()
    return error if score == "absolute" or prediction.std is None else error / prediction.std


def _least(std: Tensor) -> float:
    return float(std.min()) if len(std) else 0.0


def _logits(prediction: Prediction, task: Task) -> Tensor:
    """Return logits (N, T, C) in float64; those of a probability of class 1 are (0, its logit)."""
    if task == "multiclass":
        if prediction.probabilities is None:
            raise ConfigError("the prediction has no probabilities of classes", do="calibrate a multiclass head")
        return prediction.probabilities.double().clamp_min(1e-12).log()[:, None]
    # float32 rounds what is nearer to 1 than 6e-8
    logit = prediction.value.double().logit(eps=1e-7)
    return torch.stack([torch.zeros_like(logit), logit], dim=2)


def _unlikely(prediction: Prediction, task: Task) -> Tensor:
    """Return one minus the probability (N, T, C) of each class, in float64."""
    if task == "multiclass":
        assert prediction.probabilities is not None
        return 1 - prediction.probabilities.double()[:, None]
    one = prediction.value.double()
    return torch.stack([one, 1 - one], dim=2)


def _check_classes(classes: Tensor, count: int) -> None:
    odd = (classes != classes.round()) | (classes < 0) | (classes >= count)
    if odd.any():
        raise DataError(
            f"the calibration rows hold {classes[odd][0]:g}, which is no class",
            why=f"the predictor knows {count} classes, numbered from 0",
        )


def _temperature(logits: Tensor, classes: Tensor) -> float:
    """Return the temperature of least cross entropy for logits (n, C); 1 where there is nothing to learn from."""
    from scipy.optimize import minimize_scalar

    if not len(classes):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / exp(log_temperature), classes.long()))

    return exp(minimize_scalar(loss, bounds=TEMPERATURES, method="bounded").x)
