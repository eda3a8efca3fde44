"""Formulas as compositions."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from shards.errors import DataError

if TYPE_CHECKING:
    from pymatgen.core import Composition


@lru_cache(maxsize=1 << 16)
def composition(formula: str) -> Composition:
    """Return the composition of a formula; raise `DataError` where it is none, or names what is no element."""
    from pymatgen.core import Composition, Element

    try:
        found = Composition(formula)
        if not all(isinstance(element, Element) for element in found) or not found.num_atoms > 0:
            raise ValueError("it has other parts than chemical elements")
    except (ValueError, KeyError, OverflowError) as error:
        raise DataError(f"'{formula}' is no formula", why=str(error)) from None
    return found
