"""Folds and parts of pairs of entities (two drugs, two materials), by how new what is predicted is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from finetune.folds import Fold
from shards.errors import DataError
from shards.schema import Strict
from shards.splits import group_split


class PairPlan(Strict):
    """What a held-out pair may have in common with the training pairs.

    Attributes
    ----------
    leave : str
        ``random``: everything, rows are dealt out one by one. ``pair``: both entities, but not together (all rows of a
        pair stay together). ``first``, ``second``: the entities of that side are new (cold drug, cold target).
        ``entity``: one entity at least is new, and is in no training pair on either side (leave-drug-out of pairs of
        drugs). ``both``: neither entity is in any training pair; pairs of which one is held out are in neither part.
    symmetric : bool
        (a, b) is the same pair as (b, a), and both sides draw from the same entities.
    folds, seed : int, int
        Number of folds, and what they are drawn by.
    """

    leave: Literal["random", "pair", "first", "second", "entity", "both"]
    symmetric: bool = True
    folds: int = Field(5, ge=2)
    seed: int = Field(0, ge=0)


def pair_folds(plan: PairPlan, pairs: Sequence[tuple[str, str]]) -> list[Fold]:
    """Divide N pairs into folds, the same whatever their order (but for ``random``).

    Every pair is held out once; under ``entity`` up to twice, and under ``both`` once or never.

    Parameters
    ----------
    plan : PairPlan
        What is held out.
    pairs : sequence of (str, str)
        N pairs; one may repeat, with another context.
    """
    if plan.leave in ("entity", "both"):
        return _cold(plan, pairs)
    unit = {
        "random": lambda row, pair: str(row),
        "pair": lambda row, pair: "\0".join(sorted(pair) if plan.symmetric else pair),
        "first": lambda row, pair: pair[0],
        "second": lambda row, pair: pair[1],
    }[plan.leave]
    number = _dealt([unit(row, pair) for row, pair in enumerate(pairs)], plan)
    return [_fold(plan, i, number != i, number == i) for i in range(plan.folds)]


def pair_parts(
    leave: Literal["pair", "entity", "both"],
    pairs: Sequence[tuple[str, str]],
    part_of: Mapping[str, str],
    *,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Divide N pairs, in which the order means nothing, into ``train``, ``val`` and ``test``.

    Parameters
    ----------
    leave : str
        ``both``: a pair is in the part that both of its entities are in, and in none where they are in different ones.
        ``entity``: it is in ``train`` where both are; one entity in ``val`` makes it ``val``, one in ``test`` makes it
        ``test``. ``pair``: the parts of the entities do not matter, pairs are dealt out, a fifth to test and a fifth
        of the others to validation.
    pairs : sequence of (str, str)
        N pairs.
    part_of : mapping of str to str
        Part of each entity; what is in none makes a pair that is in none.
    seed : int
        Of what is dealt out.

    Returns
    -------
    dict of str to ndarray
        Rows of each part, ascending.
    """
    if leave == "pair":
        plan = PairPlan(leave="pair", seed=seed)
        outer = pair_folds(plan, pairs)[0]
        inner = pair_folds(plan, [pairs[row] for row in outer.train])[0]
        return {"train": outer.train[inner.train], "val": outer.train[inner.test], "test": outer.test}
    order = ("train", "val", "test")
    number = {name: place for place, name in enumerate(order)}
    both = np.array([[number.get(part_of.get(name, ""), -1) for name in pair] for pair in pairs]).reshape(-1, 2)
    known = (both >= 0).all(axis=1)
    if leave == "both":
        known &= both[:, 0] == both[:, 1]
    newest = both.max(axis=1)
    return {name: np.flatnonzero(known & (newest == place)) for name, place in number.items()}


def _cold(plan: PairPlan, pairs: Sequence[tuple[str, str]]) -> list[Fold]:
    # the name of a side keeps a drug and a target of the same name apart
    sides = [[name if plan.symmetric else f"{side}\0{name}" for name in column] for side, column in _columns(pairs)]
    number = _dealt([*sides[0], *sides[1]], plan).reshape(2, len(pairs))
    folds = []
    for i in range(plan.folds):
        new = number == i
        folds.append(_fold(plan, i, ~new.any(axis=0), new.all(axis=0) if plan.leave == "both" else new.any(axis=0)))
    return folds


def _columns(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    return [("first", [pair[0] for pair in pairs]), ("second", [pair[1] for pair in pairs])]


def _dealt(units: Sequence[str], plan: PairPlan) -> np.ndarray:
    """Return the number of the fold of every unit; equal units have the same."""
    fractions = {str(number): 1 / plan.folds for number in range(plan.folds)}
    parts = group_split({unit: unit for unit in units}, by=plan.leave, fractions=fractions, seed=plan.seed).ids
    number = {unit: int(part) for part, held in parts.items() for unit in held}
    return np.array([number[unit] for unit in units])


def _fold(plan: PairPlan, number: int, train: np.ndarray, test: np.ndarray) -> Fold:
    if not train.any() or not test.any():
        raise DataError(
            f"fold {number} by leave = '{plan.leave}' has no pair to {'predict' if train.any() else 'fit to'}",
            do="take fewer folds",
        )
    return Fold(f"fold {number}", np.flatnonzero(train), np.flatnonzero(test))
