"""Predictions as a user reads them: values with name, unit and uncertainty, alone or as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from finetune.prediction import Prediction
from finetune.targets import as_array, grouped
from finetune.units import describe

if TYPE_CHECKING:
    import pandas as pd

    from finetune.predictor import PredictorInfo


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One predicted property of one material; it can be used as a number.

    Attributes
    ----------
    name : str
        Label of the target, with its unit.
    value : float
        In the unit; for a classification the probability of class 1, for several classes the most likely one's number.
    unit : str
        Empty where there is none.
    std : float, optional
        Standard deviation, in the unit.
    lower, upper : float, optional
        Ends of the interval that holds the truth with the probability for which the predictor was calibrated.
    probability : float or tuple of float, optional
        Of class 1, or of each class.
    classes : tuple of int, optional
        The set of classes that holds the true one with the probability for which the predictor was calibrated. It may
        be empty: no class is likely enough.
    importance : dict of str to float
        Share of every modality in the fusion, where the fusion tells.
    """

    name: str
    value: float
    unit: str = ""
    std: float | None = None
    lower: float | None = None
    upper: float | None = None
    probability: float | tuple[float, ...] | None = None
    classes: tuple[int, ...] | None = None
    importance: Mapping[str, float]

    def __float__(self) -> float:
        return self.value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype=dtype)

    def __format__(self, style: str) -> str:
        return format(self.value, style) if style else str(self)

    def __str__(self) -> str:
        digits = max(0, 1 - int(np.floor(np.log10(self.std)))) if self.std and np.isfinite(self.std) else None
        shown = f"{self.value:.4g}" if digits is None else f"{self.value:.{digits}f} +- {self.std:.{digits}f}"
        interval = "" if self.lower is None or self.upper is None else f" [{self.lower:.4g}, {self.upper:.4g}]"
        classes = "" if self.classes is None else f" {{{', '.join(map(str, self.classes))}}}"
        return f"{shown}{interval}{classes} {self.unit}".rstrip()

    __repr__ = __str__

    def as_dict(self) -> dict[str, Any]:
        """Return what is known, for JSON: an unbounded interval is left out."""
        return {
            key: value
            for key, value in vars(self).items()
            if value not in (None, {}) and not (isinstance(value, float) and not np.isfinite(value))
        }


class Predictions(Sequence[Any]):
    """Predictions of N materials, in the order in which these were given.

    ``predictions[i]`` is a `Predicted`, or one for each target by name; ``numpy.asarray(predictions)`` is `values`.

    Parameters
    ----------
    ids : sequence of str
        Length N.
    info : PredictorInfo
        Targets, task and modalities.
    prediction : Prediction
        N rows.
    """

    def __init__(self, ids: Sequence[str], info: PredictorInfo, prediction: Prediction) -> None:
        self.ids, self.info, self.prediction = list(ids), info, prediction

    @property
    def values(self) -> np.ndarray:
        """(N,) values, or (N, T) where there are several targets."""
        return self._column(self.prediction.value)

    @property
    def std(self) -> np.ndarray | None:
        """Standard deviations, shaped as `values`."""
        return None if self.prediction.std is None else self._column(self.prediction.std)

    def _column(self, tensor: Any) -> np.ndarray:
        array = tensor.numpy()
        return array[:, 0] if len(self.info.targets) == 1 else array

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the values of each target (N, ...) in its shape: (N,) of numbers, (N, 6, 6) of elastic tensors."""
        value, names = self.prediction.value.numpy(), self.info.targets
        return {
            name: as_array([names[i] for i in columns], value[:, columns]) for name, columns in grouped(names).items()
        }

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> Predictions: ...
    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return Predictions(self.ids[row], self.info, self.prediction.map(lambda tensor: tensor[row]))
        found = {name: self._predicted(row, target) for target, name in enumerate(self.info.targets)}
        return found if len(found) > 1 else next(iter(found.values()))

    def _predicted(self, row: int, target: int) -> Predicted:
        p, name = self.prediction, self.info.targets[target]
        value, std, lower, upper = (
            None if part is None else float(part[row, target]) for part in (p.value, p.std, p.lower, p.upper)
        )
        assert value is not None
        probability: float | tuple[float, ...] | None = value if self.info.task == "classification" else None
        if p.probabilities is not None:
            probability = tuple(p.probabilities[row].tolist())
        classes = None if p.sets is None else tuple(p.sets[row, target].nonzero().squeeze(1).tolist())
        shares = [] if p.importance is None else p.importance[row].tolist()
        return Predicted(
            name=name,
            value=value,
            unit=describe(name)[1] if self.info.task == "regression" else "",
            std=std,
            lower=lower,
            upper=upper,
            probability=probability,
            classes=classes,
            importance=dict(zip(self.info.modalities, shares, strict=bool(shares))),
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{id}: {found}" for id, found in zip(self.ids[:5], self[:5], strict=True))
        return f"<{len(self)} predictions of {', '.join(self.info.targets)}: {shown}{', ...' * (len(self) > 5)}>"

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns of `to_frame`, each (N,), without the ids."""
        table: dict[str, np.ndarray] = {}
        p = self.prediction
        for target, name in enumerate(self.info.targets):
            for suffix, part in (("", p.value), ("_std", p.std), ("_lower", p.lower), ("_upper", p.upper)):
                if part is not None:
                    table[f"{name}{suffix}"] = part[:, target].numpy()
            if p.sets is not None:
                for number, column in enumerate(p.sets[:, target].T):
                    table[f"{name}_in_set_{number}"] = column.numpy()
        if p.probabilities is not None:
            for number, column in enumerate(p.probabilities.T):
                table[f"probability_{number}"] = column.numpy()
        if p.importance is not None:
            for modality, column in zip(self.info.modalities, p.importance.T, strict=True):
                table[f"importance_{modality}"] = column.numpy()
        return table

    def to_frame(self) -> pd.DataFrame:
        """Return a table: a row a material by its id; the unit stands in the name of each target."""
        import pandas as pd

        return pd.DataFrame(self.columns(), index=pd.Index(self.ids, name="id"))
