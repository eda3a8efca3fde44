"""Numbers with their unit, as people write them: ``"400 Gb/s"``, ``"5 us"``, ``"80 GiB"``.

A number without a unit is refused, and so is one of another kind: bits taken for bytes are a factor of eight.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
BYTES = {f"{prefix}B": factor for prefix, factor in {**DECIMAL, **BINARY}.items()}
BITS = {f"{prefix}b": factor / 8 for prefix, factor in DECIMAL.items()}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
RATES = {f"{unit}/s": factor for unit, factor in {**BYTES, **BITS}.items()}
OPERATIONS = {f"{prefix}FLOP/s": factor for prefix, factor in DECIMAL.items()}
NUMBER = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z/]*)\s*")


def quantity(text: object, units: dict[str, float]) -> float:
    """Return a quantity in the base unit: bytes, bytes a second, seconds, operations a second; or raise `ValueError`.

    Parameters
    ----------
    text : str
        Number and unit.
    units : dict of str to float
        Those of its kind, in the base unit.
    """
    found = NUMBER.fullmatch(text) if isinstance(text, str) else None
    if found is None or found[2] not in units:
        raise ValueError(f'{text!r} is no number with a unit, such as "5 {_usual(units)}"')
    value = float(found[1]) * units[found[2]]
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} must be above 0")
    return value


def _usual(units: dict[str, float]) -> str:
    return next(name for name in ("us", "TFLOP/s", "GB/s", "GB") if name in units)


Bytes = Annotated[float, BeforeValidator(lambda text: quantity(text, BYTES))]
Rate = Annotated[float, BeforeValidator(lambda text: quantity(text, RATES))]
Seconds = Annotated[float, BeforeValidator(lambda text: quantity(text, SECONDS))]
Operations = Annotated[float, BeforeValidator(lambda text: quantity(text, OPERATIONS))]
