"""Late fusion: predictions of one model a modality, combined by weights that are fitted OUT OF FOLD.

Weights that are fitted to predictions of rows on which the branches were trained trust the branch that overfits
most. So what fits them asks which rows each branch was trained on, and refuses any that it is to be judged by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from finetune.cross_validation import Model, OutOfFold, cross_validate, take
from finetune.folds import Fold, FoldPlan, make_folds
from shards.errors import CheckpointError, ConfigError, DataError
from shards.schema import Strict
from shards.splits import SampleInfo

Method = Literal["mean", "inverse_mse", "nnls", "lasso", "elastic_net", "simplex", "random_forest", "gradient_boosting"]
STACKING = ("random_forest", "gradient_boosting")
# less than this share of the weights, or a negative one, is nothing that could be scaled up
LEAST_SHARE = 0.05


class LateFusionOptions(Strict):
    """How the branches are weighted.

    Attributes
    ----------
    method : str
        ``mean``: equally. ``inverse_mse``: by the inverse of each branch's squared error. ``nnls``: least squares with
        weights of 0 or more (Breiman, Mach. Learn. 24, 49 (1996)). ``lasso``, ``elastic_net``: as the Tri_LASSO
        and Tri_Elastic of MMFDL (Lu et al., CSBJ 23, 1666 (2024)), on standardised targets, so that the strength has
        no unit. ``simplex``: weights of 0 or more that add up to 1, by gradient descent on their logits.
        ``random_forest``, ``gradient_boosting``: a model of the branches' predictions (stacking; MMFDL takes
        importances for weights, which they are not).
    alpha : float, optional
        Strength of ``lasso`` (default 0.1) or ``elastic_net`` (0.5).
    l1_ratio : float
        Share of the absolute penalty in ``elastic_net``.
    steps, lr : int, float
        Of ``simplex``.
    trees : int
        Of the stacking models.
    """

    method: Method = "nnls"
    alpha: float | None = Field(None, gt=0)
    l1_ratio: float = Field(0.5, gt=0, le=1)
    steps: int = Field(2000, ge=1)
    lr: float = Field(0.5, gt=0)
    trees: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> LateFusionOptions:
        if self.alpha is not None and self.method not in ("lasso", "elastic_net"):
            raise ValueError(f"alpha belongs to lasso and elastic_net, not to {self.method}")
        return self


class LateFusion(Strict):
    """Fitted weights of M branches.

    A row gets ``centre + sum_m w_m (p_m - centre)`` over the branches that are there, their weights scaled up until
    they add up to what all of them do, or to 1 if that is less; where they have (almost) none, they share it equally.
    A row without any branch gets the centre.

    Attributes
    ----------
    method : str
        See `LateFusionOptions`.
    branches : tuple of str
        Names, in the order of the weights.
    weights : tuple of float
        M weights; empty for stacking.
    centre : float
        Mean of the targets that the weights were fitted to.
    """

    method: Method
    branches: tuple[str, ...]
    weights: tuple[float, ...]
    centre: float

    @model_validator(mode="after")
    def _consistent(self) -> LateFusion:
        if self.method not in STACKING and len(self.weights) != len(self.branches):
            raise ValueError(f"{len(self.weights)} weights for {len(self.branches)} branches")
        if not np.isfinite([*self.weights, self.centre]).all():
            raise ValueError("a weight is not finite")
        return self

    def predict(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        """Combine predictions (N,) of each branch, NaN where its modality is missing; a branch may be left out."""
        table = self._table(predictions) - self.centre
        there = ~np.isnan(table)
        weights = np.array(self.weights)
        # each branch predicts the target itself: beyond 1, the sum of complementary ones, a single one would overshoot
        goal = max(0.0, min(float(weights.sum()), 1.0))
        present, count = there @ weights, there.sum(1)
        usable = present > LEAST_SHARE * goal
        factor = np.maximum(1.0, np.divide(goal, present, out=np.ones_like(present), where=usable))
        scaled = weights * factor[:, None]
        equal = np.full(table.shape, goal) / np.maximum(count, 1)[:, None]
        every = (count == len(weights))[:, None]
        weight = np.where(every, weights, np.where(usable[:, None], scaled, equal))
        return self.centre + np.where(there, weight * table, 0.0).sum(1)

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=1))

    @classmethod
    def read(cls, path: Path) -> LateFusion:
        """Read what `write` wrote."""
        try:
            found = cls.model_validate(json.loads(path.read_text()))
            if found.method in STACKING:
                raise ValueError(f"a stacking model ({found.method}) is not stored")
        except (OSError, ValueError, ValidationError) as error:
            raise CheckpointError("these are no late-fusion weights", where=path, why=str(error)) from None
        return found

    def _table(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        foreign = sorted(set(predictions) - set(self.branches))
        if foreign or not predictions:
            raise DataError(f"the fusion has no branch {foreign}", why=f"it was fitted to {', '.join(self.branches)}")
        count = len(next(iter(predictions.values())))
        absent = np.full(count, np.nan)
        return np.stack([np.asarray(predictions.get(name, absent), np.float64) for name in self.branches], axis=1)


class Stacking(LateFusion):
    """A fitted model of the branches' predictions; a missing one is filled by the mean of those that are there."""

    model: Any = Field(exclude=True)

    def predict(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        """Combine predictions; see `LateFusion.predict`."""
        return self.model.predict(_filled(self._table(predictions), self.centre))

    def write(self, path: Path) -> None:
        """Refuse: trees would need pickle."""
        raise ConfigError(f"a fitted {self.method} cannot be stored without pickle", do="use nnls, or any weights")


def fit_late_fusion(
    options: LateFusionOptions,
    predictions: Mapping[str, np.ndarray],
    targets: np.ndarray,
    *,
    ids: Sequence[str],
    trained_on: Mapping[str, Collection[str]],
    seed: int = 0,
) -> LateFusion:
    """Fit weights to predictions of rows that no branch was trained on.

    Parameters
    ----------
    options : LateFusionOptions
        How.
    predictions : mapping of str to ndarray
        (N,) of each branch, NaN where its modality is missing. Probabilities of class 1 are combined alike.
    targets : ndarray
        (N,), NaN where unknown.
    ids : sequence of str
        Of the N rows; give groups where samples have several records.
    trained_on : mapping of str to collection of str
        For EVERY branch, the ids (or groups) that it was trained on, or chosen by.
    seed : int
        Of the stacking models.
    """
    unsaid = sorted(set(predictions) - set(trained_on))
    if unsaid:
        raise ConfigError(f"what was branch {unsaid} trained on?", why="the weights must be fitted to other rows")
    for name in predictions:
        shared = set(ids) & set(trained_on[name])
        if shared:
            raise DataError(
                f"branch '{name}' was trained on {len(shared)} of the rows that the weights are fitted to",
                where=min(shared),
                why="a branch that overfits looks perfect on its own training rows and would get all the weight",
                do="fit to out-of-fold predictions (fit_out_of_fold), or to a part that no branch has seen",
            )
    return _fit(options, predictions, np.asarray(targets, np.float64), seed)


def fit_out_of_fold(options: LateFusionOptions, branches: Mapping[str, OutOfFold], *, seed: int = 0) -> LateFusion:
    """Fit weights to the out-of-fold predictions of cross-validated branches.

    Every row is predicted by a model of each branch that was not fitted to it. The branches must share their folds:
    else a model of one could have seen what another was held out from, and groups could be torn.
    """
    first = next(iter(branches.values()))
    for name, branch in branches.items():
        same = len(branch.folds) == len(first.folds) and all(
            np.array_equal(mine.test, other.test) and np.array_equal(mine.train, other.train)
            for mine, other in zip(branch.folds, first.folds, strict=True)
        )
        if not same or not np.array_equal(branch.targets, first.targets, equal_nan=True):
            raise DataError(f"branch '{name}' was cross-validated over other folds or targets than the first")
        assert all(not np.intersect1d(fold.train, fold.test).size for fold in branch.folds)
    return _fit(options, {name: branch.by_row() for name, branch in branches.items()}, first.targets, seed)


class WherePresent:
    """A model of the rows that have its modality, absent ones being NaN throughout: of those it predicts NaN."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def fit(self, features: Any, targets: np.ndarray) -> WherePresent:
        """Fit to the rows that are there."""
        rows = _present(features)
        if not len(rows):
            raise DataError("no row to fit to has the modality")
        self.model.fit(take(features, rows), targets[rows])
        return self

    def predict(self, features: Any) -> np.ndarray:
        """Return (N,), NaN where the modality is absent."""
        rows, values = _present(features), np.full(len(features), np.nan)
        if len(rows):
            values[rows] = self.model.predict(take(features, rows))
        return values


class LateFused:
    """Branches and the weights of their predictions as one model, for `finetune.cross_validation.cross_validate`.

    ``fit`` cross-validates every branch inside the rows that it is given, fits the weights to these out-of-fold
    predictions, then fits the branches anew to all of the rows.

    Parameters
    ----------
    branches : mapping of str to callable
        Name to a function that returns a new, unfitted model; each gets the features of its name, those of absent rows
        (NaN throughout) left out.
    options : LateFusionOptions
        How they are weighted.
    groups : sequence of str
        Of the rows that ``fit`` will get (``fold.train`` of the fold that a model is made for): records of one group
        are in one inner fold.
    folds, seed : int, int
        Inner folds, and what they are drawn by.
    """

    def __init__(
        self,
        branches: Mapping[str, Callable[[], Model]],
        options: LateFusionOptions,
        *,
        groups: Sequence[str],
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        self.branches, self.options, self.groups = dict(branches), options, list(groups)
        self.models: dict[str, WherePresent] = {}
        self.folds, self.seed = folds, seed

    def fit(self, features: Mapping[str, Any], targets: np.ndarray) -> LateFused:
        """Fit to N rows of the features of every branch, and targets (N,)."""
        if len(self.groups) != len(targets):
            raise DataError(f"there are {len(self.groups)} groups for {len(targets)} rows")
        infos = [SampleInfo(id=str(row), group=group) for row, group in enumerate(self.groups)]
        inner = make_folds(FoldPlan(folds=self.folds, seed=self.seed), infos)
        found = {name: self._out_of_fold(name, features[name], targets, inner) for name in self.branches}
        self.fusion = fit_out_of_fold(self.options, found, seed=self.seed)
        self.models = {name: WherePresent(make()).fit(features[name], targets) for name, make in self.branches.items()}
        return self

    def predict(self, features: Mapping[str, Any]) -> np.ndarray:
        """Return (N,)."""
        return self.fusion.predict({name: model.predict(features[name]) for name, model in self.models.items()})

    def _out_of_fold(self, name: str, features: Any, targets: np.ndarray, inner: Sequence[Fold]) -> OutOfFold:
        # copies among the rows were looked for by the outer call
        return cross_validate(
            lambda fold: WherePresent(self.branches[name]()), features, targets, inner, duplicates="allow"
        )


def _fit(
    options: LateFusionOptions, predictions: Mapping[str, np.ndarray], targets: np.ndarray, seed: int
) -> LateFusion:
    table = np.stack([np.asarray(values, np.float64) for values in predictions.values()], axis=1)
    if targets.ndim != 1 or table.shape != (len(targets), len(predictions)):
        raise DataError(f"predictions {table.shape} and targets {targets.shape} are no (N, M) and (N,)")
    names, known = tuple(predictions), ~np.isnan(targets)
    table, targets = table[known], targets[known]
    if not len(targets):
        raise DataError("no target of the rows is known")
    centre = float(targets.mean())
    about: dict[str, Any] = {"method": options.method, "branches": names, "centre": centre}
    if options.method in STACKING:
        some = ~np.isnan(table).all(axis=1)
        model = _stacking(options, seed).fit(_filled(table[some], centre), targets[some])
        return Stacking(weights=(), model=model, **about)
    return LateFusion(weights=tuple(_weights(options, table, targets, names).tolist()), **about)


def _weights(options: LateFusionOptions, table: np.ndarray, targets: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Return (M,) weights of centred predictions (N, M)."""
    from scipy.optimize import nnls
    from sklearn.linear_model import ElasticNet, Lasso

    if options.method == "mean":
        return np.full(len(names), 1 / len(names))
    if options.method == "inverse_mse":
        # each branch by the rows that have it
        there = ~np.isnan(table)
        if not there.any(axis=0).all():
            raise DataError(f"no row has branch '{names[int((~there.any(axis=0)).argmax())]}'")
        inverse = 1 / np.maximum(np.nanmean((table - targets[:, None]) ** 2, axis=0), np.finfo(float).tiny ** 0.5)
        return inverse / inverse.sum()
    complete = ~np.isnan(table).any(axis=1)
    if complete.sum() < 2:
        raise DataError(
            f"{complete.sum()} rows have all branches, {options.method} is fitted to those",
            do='use method = "inverse_mse", which looks at one branch at a time',
        )
    centre, spread = targets.mean(), targets[complete].std() or 1.0
    x, y = (table[complete] - centre) / spread, (targets[complete] - centre) / spread
    if options.method == "nnls":
        return nnls(x, y)[0]
    if options.method == "simplex":
        return _simplex(x, y, options)
    if options.method == "lasso":
        return Lasso(options.alpha or 0.1, fit_intercept=False).fit(x, y).coef_
    return ElasticNet(options.alpha or 0.5, l1_ratio=options.l1_ratio, fit_intercept=False).fit(x, y).coef_


def _simplex(x: np.ndarray, y: np.ndarray, options: LateFusionOptions) -> np.ndarray:
    """Return weights softmax(theta) that minimise the squared error, by gradient descent from equal ones."""
    gram, cross = x.T @ x / len(x), x.T @ y / len(x)
    theta = np.zeros(x.shape[1])
    # the curvature of the error, so that the rate has no unit
    rate = options.lr / max(float(np.linalg.eigvalsh(gram)[-1]), np.finfo(float).tiny)
    for _ in range(options.steps):
        weights = np.exp(theta - theta.max())
        weights /= weights.sum()
        slope = 2 * (gram @ weights - cross)
        theta = theta - rate * weights * (slope - weights @ slope)
    return weights


def _stacking(options: LateFusionOptions, seed: int) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

    if options.method == "random_forest":
        # leaves of a few rows: the branches are few, and their errors large beside what a leaf of one could tell
        return RandomForestRegressor(options.trees, min_samples_leaf=5, random_state=seed)
    return GradientBoostingRegressor(n_estimators=options.trees, max_depth=2, learning_rate=0.05, random_state=seed)


def _present(features: Any) -> np.ndarray:
    if isinstance(features, np.ndarray) and features.dtype.kind == "f":
        return np.flatnonzero(~np.isnan(features.reshape(len(features), -1)).all(axis=1))
    return np.arange(len(features))


def _filled(table: np.ndarray, centre: float) -> np.ndarray:
    there = ~np.isnan(table)
    mean = np.where(there, table, 0.0).sum(1) / np.maximum(there.sum(1), 1)
    return np.where(there, table, np.where(there.any(axis=1), mean, centre)[:, None])
