"""Folds for cross-validation: pure functions of the samples and a seed, which never tear a group apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from shards.resplit import modality_vectors, sample_infos
from shards.splits import Division, SampleInfo, SplitPlan, group_split, make_split, units_of

TRAIN, TEST = "train", "test"
# a label of more values than this is stratified by its quantiles
MAX_CLASSES, BINS = 20, 10
PARAMETERS = {"top_quantile": {"label", "quantile"}, "chronological": {"key"}, "cluster": {"features"}}


@dataclass(frozen=True)
class Fold:
    """Positions (ascending) of the rows that are fitted to, and of those that are held out; no group is in both."""

    name: str
    train: np.ndarray
    test: np.ndarray


class FoldPlan(Division):
    """How to cross-validate; see `shards.splits.Division` for what it shares with splits.

    Attributes
    ----------
    by : str
        ``group`` (default): at random, the records of one group, or of one id, together; where nothing repeats this is
        plain k-fold. ``formula``, ``chemical_system``, ``prototype``, ``scaffold`` or any other tag: samples of equal
        tag together too. ``cluster``: each of several clusters is held out once (leave-one-cluster-out; Meredig et
        al., Mol. Syst. Des. Eng. 3, 819 (2018)). ``chronological``: consecutive blocks of time, each predicted from
        all earlier ones. ``top_quantile``: one fold, the highest values of a label held out (extrapolation).
    folds : int or ``each``
        Number of folds (or clusters, or predicted blocks of time); ``each``: one for every value of the tag.
    repeats : int
        Rounds of random folds.
    stratify : str, optional
        A label of which every fold gets about the same shares: its values, or tenths of it where it has many.
    """

    by: str = Field("group", min_length=1)
    folds: int | Literal["each"] = 5
    repeats: int = Field(1, ge=1)
    stratify: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FoldPlan:
        if self.folds != "each" and self.folds < 2:
            raise ValueError("at least 2 folds are needed")
        random = self.by not in PARAMETERS
        if not random and (self.folds == "each" or self.stratify):
            raise ValueError(f"folds = 'each' and stratify are for random folds, not for by = '{self.by}'")
        if self.folds == "each" and (self.stratify or self.repeats > 1):
            raise ValueError("folds = 'each' leaves nothing to stratify or repeat")
        if self.by in ("chronological", "top_quantile") and self.repeats > 1:
            raise ValueError(f"by = '{self.by}' draws nothing at random: repeating it gives the same folds")
        self.split(seed=self.seed, fractions={TRAIN: 0.9, TEST: 0.1})
        return self

    def split(self, *, seed: int, fractions: Mapping[str, float], **more: int) -> SplitPlan:
        """Return a division of `shards.splits` with what this plan says."""
        given = {name: getattr(self, name) for name in self.model_fields_set & set().union(*PARAMETERS.values())}
        return SplitPlan(by=self.by, seed=seed, fractions=dict(fractions), missing=self.missing, **given, **more)


def dataset_folds(
    plan: FoldPlan,
    dataset: Dataset,
    positions: Iterable[int] | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
) -> list[Fold]:
    """Return folds over samples of a data set; those of a fold number the given positions from 0.

    See `make_folds`.
    """
    division = plan.split(seed=plan.seed, fractions={TRAIN: 0.9, TEST: 0.1})
    infos = sample_infos(dataset, division)
    vectors = modality_vectors(dataset, division) if vectors is None else vectors
    return make_folds(plan, infos if positions is None else [infos[int(i)] for i in positions], vectors)


def make_folds(
    plan: FoldPlan, samples: Sequence[SampleInfo], vectors: Mapping[str, np.ndarray] | None = None
) -> list[Fold]:
    """Divide N samples into folds.

    What is in a fold depends on the ids, tags, groups and labels, and on the seed: not on the order of the samples, the
    rank or the process. So every rank, and a run that is resumed, has the same folds.

    Parameters
    ----------
    plan : FoldPlan
        What to go by.
    samples : sequence of SampleInfo
        N rows; an id may repeat (several records of one sample), its rows stay together.
    vectors : mapping of str to ndarray, optional
        Sample id to (D,), where ``plan.features`` names a modality to cluster by.

    Returns
    -------
    list of Fold
        ``repeats`` times ``folds`` of them; rows that are unassigned are in none.
    """
    _check(samples)
    rows: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        rows.setdefault(sample.id, []).append(position)
    folds = []
    for repeat in range(plan.repeats):
        seed = int(np.random.default_rng([plan.seed, repeat]).integers(2**31))
        for name, train, test in _divided(plan, samples, vectors, seed):
            title = f"{name} of round {repeat}" if plan.repeats > 1 else name
            fold = Fold(title, _positions(rows, train), _positions(rows, test))
            assert not {samples[i].whole for i in fold.train} & {samples[i].whole for i in fold.test}
            folds.append(fold)
    return folds


def repeats_anything(samples: Sequence[SampleInfo]) -> bool:
    """Say whether an id or a group repeats: then rows are not independent, and folds by rows would leak."""
    return len({sample.whole for sample in samples}) < len(samples)


def _divided(
    plan: FoldPlan, samples: Sequence[SampleInfo], vectors: Mapping[str, np.ndarray] | None, seed: int
) -> Iterator[tuple[str, Iterable[str], Iterable[str]]]:
    """Yield name, training ids and test ids of each fold of one round."""
    if plan.by == "cluster":
        assert plan.folds != "each"
        for number in range(plan.folds):
            more = {"clusters": plan.folds, "held_out": number}
            split = plan.split(seed=seed, fractions={TRAIN: 0.9, TEST: 0.1}, **more)
            parts = make_split(split, samples, vectors).ids
            yield f"cluster {number}", parts[TRAIN], parts[TEST]
    elif plan.by == "top_quantile":
        parts = make_split(plan.split(seed=seed, fractions={TRAIN: 0.9, TEST: 0.1}), samples).ids
        yield f"top {plan.quantile:g} of {plan.label}", parts[TRAIN], parts[TEST]
    elif plan.by == "chronological":
        assert plan.folds != "each"
        blocks = [TRAIN, *(str(number) for number in range(1, plan.folds)), TEST]
        parts = make_split(plan.split(seed=seed, fractions=_shares(blocks)), samples).ids
        for number in range(1, len(blocks)):
            earlier = [sample_id for block in blocks[:number] for sample_id in parts[block]]
            yield f"block {number}", earlier, parts[blocks[number]]
    else:
        parts = _random_parts(plan, samples, seed)
        for name, held_out in parts.items():
            yield name, [i for other, ids in parts.items() if other != name for i in ids], held_out


def _random_parts(plan: FoldPlan, samples: Sequence[SampleInfo], seed: int) -> dict[str, list[str]]:
    units = units_of(plan.by, samples)
    left = {sample.id for sample in samples} - set(units)
    if left and (plan.missing == "error" or not units):
        raise DataError(
            f"{len(left)} of {len(samples)} samples have no tag '{plan.by}' to go by",
            where=min(left),
            do="add it, or set missing = 'unassigned'",
        )
    if plan.folds == "each":
        names = sorted(set(units.values()))
        if len(names) < 2:
            raise DataError(f"all samples have the same '{plan.by}'", why="none can be held out")
        return {f"{plan.by} {name}": [i for i in units if units[i] == name] for name in names}
    if plan.stratify:
        return _stratified(plan.stratify, plan.folds, units, samples, seed)
    fractions = _shares([f"fold {number}" for number in range(plan.folds)])
    return group_split(units, by=plan.by, fractions=fractions, seed=seed).ids


def _stratified(
    label: str, folds: int, units: Mapping[str, str], samples: Sequence[SampleInfo], seed: int
) -> dict[str, list[str]]:
    from sklearn.model_selection import StratifiedGroupKFold

    labels = {sample.id: sample.labels.get(label, np.nan) for sample in samples if sample.id in units}
    ids = sorted(labels)
    values = np.array([labels[i] for i in ids])
    known = ~np.isnan(values)
    if not known.any():
        raise ConfigError(f"no sample has the label '{label}' to stratify by")
    if len(set(units.values())) < folds:
        raise DataError(f"{len(set(units.values()))} groups cannot fill {folds} folds")
    if len(np.unique(values[known])) > MAX_CLASSES:
        values[known] = np.searchsorted(np.quantile(values[known], np.arange(1, BINS) / BINS), values[known])
    strata = np.unique(np.where(known, values, -np.inf), return_inverse=True)[1]
    division = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = division.split(ids, strata, [units[i] for i in ids])
    return {f"fold {number}": [ids[i] for i in test] for number, (_, test) in enumerate(parts)}


def _shares(names: Sequence[str]) -> dict[str, float]:
    return {name: 1 / len(names) for name in names}


def _positions(rows: Mapping[str, list[int]], ids: Iterable[str]) -> np.ndarray:
    return np.sort([position for sample_id in set(ids) for position in rows[sample_id]]).astype(np.int64)


def _check(samples: Sequence[SampleInfo]) -> None:
    groups: dict[str, str] = {}
    for sample in samples:
        if groups.setdefault(sample.id, sample.whole) != sample.whole:
            raise DataError("one id is in two groups", where=sample.id, why=f"{groups[sample.id]}, {sample.whole}")
