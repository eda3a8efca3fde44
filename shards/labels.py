"""Labels of several components: an array is kept as one number a component, under the name ``NAME[i,j]``."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from shards.errors import DataError

COMPONENT = re.compile(r"(.+?)\[(\d+(?:,\d+)*)\]")


def component(name: str, index: tuple[int, ...]) -> str:
    """Return the name of one component: ``elastic_gpa[0,1]``."""
    return f"{name}[{','.join(map(str, index))}]"


def parse_component(label: str) -> tuple[str, tuple[int, ...]]:
    """Return the name of a label and which component it is; of a label of one number ``()``."""
    found = COMPONENT.fullmatch(label)
    return (found[1], tuple(map(int, found[2].split(",")))) if found else (label, ())


def flat_labels(labels: Mapping[str, ArrayLike]) -> dict[str, float]:
    """Return labels with every array replaced by its components.

    Raises
    ------
    DataError
        For a label that is no number and no array of numbers.
    """
    flat: dict[str, float] = {}
    for name, value in labels.items():
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"the label '{name}' is neither a number nor an array of numbers", why=str(error)) from None
        for index, number in np.ndenumerate(array):
            flat[component(name, index) if array.ndim else name] = float(number)
    return flat
