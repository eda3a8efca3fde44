"""Several targets: one fitted model each, and how they are stored without pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from finetune.estimators.base import MULTICLASS, Estimator, Fitted
from finetune.estimators.linear import Linear
from finetune.prediction import Prediction
from shards.errors import CheckpointError, ConfigError, DataError

FORMAT = "matloom-linear-1"


@dataclass(frozen=True, kw_only=True)
class FittedTargets:
    """Fitted estimators of T targets.

    Attributes
    ----------
    targets : tuple of str
        Names, with their units.
    task : str
        See `finetune.heads.base.Head`.
    columns : tuple of Fitted
        One a target.
    """

    targets: tuple[str, ...]
    task: str
    columns: tuple[Fitted, ...]

    def predict(self, features: np.ndarray) -> Prediction:
        """Predict for features (N, F)."""
        values = np.stack([column.predict(features) for column in self.columns], axis=1)
        shares = self.columns[0].probabilities(features) if self.task == MULTICLASS else None
        return Prediction(
            torch.from_numpy(values).float(), probabilities=None if shares is None else torch.from_numpy(shares).float()
        )

    def write(self, path: Path) -> None:
        """Write arrays of linear models as one safetensors file; raise `ConfigError` for any other."""
        arrays = {
            f"{number}.{name}": np.ascontiguousarray(values, np.float64)
            for number, column in enumerate(self.columns)
            for name, values in column.arrays().items()
        }
        save_file(arrays, path, {"format": FORMAT, "task": self.task, "targets": json.dumps(self.targets)})

    @classmethod
    def read(cls, path: Path) -> FittedTargets:
        """Read what `write` wrote."""
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.get("format") != FORMAT:
                raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
            targets, task = tuple(json.loads(about["targets"])), about["task"]
            columns = []
            for number in range(len(targets)):
                mine = {name.split(".", 1)[1]: a for name, a in arrays.items() if name.startswith(f"{number}.")}
                columns.append(Linear(task=task, **mine))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError("this is no stored estimator", where=path, why=str(error)) from None
        return cls(targets=targets, task=task, columns=tuple(columns))


def fit_targets(
    estimator: Estimator, features: np.ndarray, targets: np.ndarray, *, names: tuple[str, ...], task: str, seed: int
) -> FittedTargets:
    """Fit one model a target, each to the rows of which its target is known.

    Parameters
    ----------
    estimator : Estimator
        Options.
    features, targets : ndarray
        (N, F); (N, T) with NaN where unknown.
    names : tuple of str
        Of the T targets.
    task : str
        Of all of them; ``multiclass`` has one target.
    seed : int
        Of everything random.
    """
    if task == MULTICLASS and len(names) != 1:
        raise ConfigError("a multiclass estimator has one target", why=f"there are {len(names)}")
    if targets.shape != (len(features), len(names)):
        raise DataError(f"the targets are {targets.shape}, expected ({len(features)}, {len(names)})")
    whole = not np.isnan(targets).any() and len(names) > 1
    together = estimator.fit_together(features, targets, task=task, seed=seed) if whole else None
    if together is not None:
        return FittedTargets(targets=names, task=task, columns=together)
    columns = []
    for name, values in zip(names, targets.T, strict=True):
        known = ~np.isnan(values)
        if not known.any():
            raise DataError(f"no value of '{name}' is known")
        columns.append(estimator.fit(features[known], values[known], task=task, seed=seed))
    return FittedTargets(targets=names, task=task, columns=tuple(columns))
