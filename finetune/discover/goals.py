"""What a candidate is to be: in a range, extreme in a property."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from finetune.prediction import Prediction
from finetune.search.where import parse_range
from shards.errors import ConfigError


@dataclass(frozen=True)
class InRange:
    """A property in a range, both ends included; the objective is the probability of that."""

    label: str
    low: float = -inf
    high: float = inf


@dataclass(frozen=True)
class Extreme:
    """A property as large, or as small, as can be; the objective is the predicted value, or its negative."""

    label: str
    which: Literal["max", "min"]


Goal = InRange | Extreme
Source = Literal["interval", "std", "probabilities", "value"]


def parse_goal(text: str) -> Goal:
    """Read ``band_gap_ev=1.0..1.6``, ``bulk_modulus_gpa=max`` or ``formation_energy_ev_per_atom=min``."""
    label, equals, wanted = text.partition("=")
    if not label or not equals:
        raise ConfigError(f"'{text}' is no goal", do="write LABEL=LOW..HIGH, LABEL=max or LABEL=min")
    if wanted in ("max", "min"):
        return Extreme(label, "max" if wanted == "max" else "min")
    return InRange(label, *parse_range(wanted))


def probability_in_range(
    prediction: Prediction, target: int, goal: InRange, *, task: str, level: float | None = None
) -> tuple[Tensor, Source]:
    """Return the probability (N,) that a target lies in a range, and what it was taken from.

    A calibrated interval, or else a standard deviation, is read as a normal distribution: its middle is the interval's,
    and its deviation is such that it holds ``level`` inside of it. Without either the probability is 1 or 0, by the
    value alone.

    Parameters
    ----------
    prediction : Prediction
        N rows.
    target : int
        Column.
    goal : InRange
        The range; of a classification, which class numbers it holds.
    task : str
        See `finetune.heads.base.Head`.
    level : float, optional
        Probability of the prediction's interval; None where that is not known, and the interval is not looked at.
    """
    value = prediction.value[:, target].double()
    if task == "classification":
        return value * _holds(goal, 1) + (1 - value) * _holds(goal, 0), "probabilities"
    if prediction.probabilities is not None:
        classes = torch.tensor([_holds(goal, c) for c in range(prediction.probabilities.shape[1])])
        return (prediction.probabilities.double() * classes).sum(1), "probabilities"
    middle, deviation = value, torch.zeros_like(value)
    source: Source = "value"
    if level is not None and prediction.lower is not None and prediction.upper is not None:
        lower, upper = prediction.lower[:, target].double(), prediction.upper[:, target].double()
        finite = (upper - lower).isfinite()
        # an endless interval says that nothing is known of the deviation
        middle = torch.where(finite, (lower + upper) / 2, value)
        deviation = torch.where(finite, (upper - lower) / (2 * NormalDist().inv_cdf((1 + level) / 2)), inf)
        source = "interval"
    elif prediction.std is not None:
        deviation, source = prediction.std[:, target].double(), "std"
    inside = ((middle >= goal.low) & (middle <= goal.high)).double()
    return torch.where(deviation > 0, _mass(goal.low, goal.high, middle, deviation), inside), source


def _mass(low: float, high: float, middle: Tensor, deviation: Tensor) -> Tensor:
    """Return the probability (N,) between two ends; precise in both tails, where a difference near 1 would be 0."""
    a, b = (_scaled(end, middle, deviation) for end in (low, high))
    # what lies above the middle is mirrored
    a, b = torch.where(a > 0, -b, a), torch.where(a > 0, -a, b)
    # PyTorch's ndtr is 0 in the far tail
    return (torch.special.erfc(-b / sqrt(2)) - torch.special.erfc(-a / sqrt(2))) / 2


def _scaled(end: float, middle: Tensor, deviation: Tensor) -> Tensor:
    return torch.full_like(middle, end) if abs(end) == inf else (end - middle) / deviation


def _holds(goal: InRange, number: int) -> float:
    return float(goal.low <= number <= goal.high)
