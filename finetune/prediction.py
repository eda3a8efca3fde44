"""What a predictor says of B materials: values in the targets' units, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Prediction(NamedTuple):
    """Predictions of T targets for B rows.

    Attributes
    ----------
    value : Tensor
        (B, T) in the targets' units; for ``classification`` the probability of class 1, for ``multiclass`` the
        number of the most likely class.
    std : Tensor, optional
        (B, T) standard deviation, in the same units.
    lower, upper : Tensor, optional
        (B, T) ends of an interval that holds the truth with the probability for which it was calibrated.
    probabilities : Tensor, optional
        (B, C) of the classes of a ``multiclass`` target.
    sets : Tensor, optional
        (B, T, C) bool: which classes are in the set that holds the true one with the probability for which the
        predictor was calibrated; C is 2 for ``classification``.
    importance : Tensor, optional
        (B, M) share of every modality in the fusion, in the order of the predictor's modalities.
    """

    value: Tensor
    std: Tensor | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None
    probabilities: Tensor | None = None
    sets: Tensor | None = None
    importance: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        """Return a prediction of which every tensor is changed."""
        return Prediction(**{n: change(part) for n, part in self._asdict().items() if part is not None})

    def shifted(self, offset: Tensor) -> Prediction:
        """Return a prediction of which value and interval have ``offset`` (B, T) added."""
        moved = {n: getattr(self, n) + offset for n in ("value", "lower", "upper") if getattr(self, n) is not None}
        return self._replace(**moved)

    @classmethod
    def join(cls, parts: Sequence[Prediction]) -> Prediction:
        """Join predictions of consecutive rows."""
        columns = {name: [part._asdict()[name] for part in parts] for name in cls._fields}
        return cls(**{name: torch.cat(column) for name, column in columns.items() if column[0] is not None})
