"""Folds of a recipe: in each, a part to fit to, one to choose the epoch by, and one that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from finetune.folds import PARAMETERS, FoldPlan, dataset_folds
from shards.errors import DataError
from shards.reader import Dataset
from shards.resplit import sample_infos
from shards.splits import SampleInfo, group_split, units_of

# the seed of the validation parts, beside that of the folds
OF_VALIDATION = 1


class RecipeFolds(FoldPlan):
    """The ``[folds]`` of a recipe: how the rows of the data set are divided, again and again.

    Attributes
    ----------
    val : float
        Share of a fold's other rows by which the epoch is chosen; drawn as the folds are, by whole tags and groups
        (``cluster``, ``chronological`` and ``top_quantile``: by whole groups).
    seen : str
        What becomes of folds over data that the model was pretrained on: ``error``, or ``allow``, where it is clear
        that the encoders have seen the held-out materials, though not their labels.
    """

    val: float = Field(0.1, gt=0, le=0.5)
    seen: Literal["error", "allow"] = "error"


@dataclass(frozen=True)
class FoldParts:
    """One fold: its name, and the places in the data set of ``train``, ``val`` and ``test``; no group is in two."""

    name: str
    parts: dict[str, np.ndarray]


def fold_parts(plan: RecipeFolds, dataset: Dataset, positions: np.ndarray) -> list[FoldParts]:
    """Divide some rows of a data set.

    Parameters
    ----------
    plan : RecipeFolds
        What to go by.
    dataset : Dataset
        Of the samples.
    positions : ndarray
        (N,) ascending places of those that take part.
    """
    infos = sample_infos(dataset, plan.split(seed=plan.seed, fractions={"train": 0.9, "test": 0.1}))
    found = []
    for number, fold in enumerate(dataset_folds(plan, dataset, positions)):
        rest = positions[fold.train]
        validation = _validation(plan, [infos[int(i)] for i in rest], number, fold.name)
        parts = {"train": np.delete(rest, validation), "val": rest[validation], "test": positions[fold.test]}
        found.append(FoldParts(fold.name, parts))
    return found


def _validation(plan: RecipeFolds, samples: Sequence[SampleInfo], number: int, name: str) -> np.ndarray:
    """Return which of a fold's other rows choose the epoch."""
    by, fractions = tag_of(plan.by), {"train": 1 - plan.val, "val": plan.val}
    seed = int(np.random.default_rng([plan.seed, OF_VALIDATION, number]).integers(2**31))
    try:
        chosen = set(group_split(units_of(by, samples), by=by, fractions=fractions, seed=seed).ids["val"])
    except DataError as error:
        raise DataError(f"no validation part can be drawn in {name}", where="folds", why=error.what) from None
    return np.flatnonzero([sample.id in chosen for sample in samples])


def tag_of(by: str) -> str:
    """Return the tag by which samples are kept together where a division goes by one, else ``group``."""
    return "group" if by in PARAMETERS else by


def groups_of(by: str, dataset: Dataset) -> list[str]:
    """Return what each sample of a data set must not be parted from, where a division goes ``by`` something.

    Samples of one group, and of equal tag.
    """
    plan = FoldPlan(by=tag_of(by), missing="unassigned")
    infos = sample_infos(dataset, plan.split(seed=0, fractions={"train": 0.9, "test": 0.1}))
    units = units_of(plan.by, infos)
    return [units.get(info.id, info.whole) for info in infos]
