"""Tables of pairs of materials: which two of a data set, and what is known of them together."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from shards.errors import DataError
from shards.schema import Strict

FIRST, SECOND = "id_a", "id_b"


class PairsConfig(Strict):
    """Pairs of materials of the data set in place of single ones.

    A name of a file alone stands for ``{ file = ... }``.

    Attributes
    ----------
    file : str
        CSV with the columns ``id_a``, ``id_b`` and one for each target.
    leave : str
        What a test pair may have in common with the training pairs: ``both``: no material; ``entity``: at most one;
        ``pair``: both, but not together. The first two take the parts of the recipe's ``split`` for the materials; see
        `finetune.pair_folds.pair_parts`.
    seed : int
        By which ``pair`` deals them out.
    """

    file: str
    leave: Literal["both", "entity", "pair"] = "both"
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _file_alone(cls, given: Any) -> Any:
        return {"file": given} if isinstance(given, str) else given


@dataclass(frozen=True)
class PairTable:
    """N pairs.

    Attributes
    ----------
    pairs : list of (str, str)
        Their ids, as the file has them.
    values : ndarray
        (N, T) float64, NaN where unknown.
    """

    pairs: list[tuple[str, str]]
    values: np.ndarray


def read_pairs(path: Path, targets: Sequence[str] = (), known: Container[str] | None = None) -> PairTable:
    """Read a table of pairs; the order of the two has no meaning, and a material may be paired with itself.

    Parameters
    ----------
    path : Path
        CSV with the columns ``id_a``, ``id_b`` and ``targets``; others are not looked at. An empty cell is unknown.
    targets : sequence of str
        Columns of numbers.
    known : container of str, optional
        The ids that there are.

    Raises
    ------
    DataError
        For a column that is missing, an id that is not known, a pair that is there twice (in either order), a cell
        that is no finite number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = list(table.fieldnames or ())
            _check_columns(columns, targets, path)
            rows = [(table.line_num, row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("the pairs cannot be read", where=path, why=str(error)) from None
    pairs, values = [], []
    lines: dict[frozenset[str], int] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        pair = ((row[FIRST] or "").strip(), (row[SECOND] or "").strip())
        for name, column in zip(pair, (FIRST, SECOND), strict=True):
            if not name or (known is not None and name not in known):
                raise DataError(
                    f"'{name}' in column '{column}' is no id of the data set" if name else f"'{column}' is empty",
                    where=where,
                    do="give ids as the data set has them",
                )
        earlier = lines.setdefault(frozenset(pair), line)
        if earlier != line:
            raise DataError(
                f"the pair of '{pair[0]}' and '{pair[1]}' is there already",
                where=where,
                why=f"line {earlier} has it; (a, b) and (b, a) are one pair",
                do="keep one of the rows",
            )
        pairs.append(pair)
        values.append([_number(row[name], name, where) for name in targets])
    return PairTable(pairs, np.array(values, np.float64).reshape(len(pairs), len(targets)))


def _check_columns(columns: Sequence[str], targets: Sequence[str], path: Path) -> None:
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"the column '{twice[0]}' is there twice", where=path)
    for name in (FIRST, SECOND, *targets):
        if name not in columns:
            raise DataError(
                f"the table of pairs has no column '{name}'",
                where=path,
                why=f"it has {', '.join(columns) or 'none'}",
                do=f"columns: {FIRST}, {SECOND} and the targets",
            )


def _number(cell: str | None, column: str, where: str) -> float:
    text = (cell or "").strip()
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"'{text}' in column '{column}' is no number", where=where, do="leave the cell empty where it is unknown"
        )
    return value
