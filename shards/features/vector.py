"""A vector that the source already holds: an embedding or descriptors computed elsewhere."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record


@FEATURES.register("vector")
class VectorFeature(Feature):
    """One of the record's arrays, unchanged.

    Attributes
    ----------
    array : str
        Its name in the source (`shards.sources.base.Record.arrays`).
    length : int
        Its number of entries; another one is refused.
    """

    kind: ClassVar[Kind] = "vector"
    step: Literal["vector"] = "vector"
    array: str
    length: int = Field(ge=1, le=1_000_000)

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a vector."""
        fields = {"values": FieldSpec(dtype="float32", shape=(self.length,))}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``values`` (length,) float32, or None where the record has no such array."""
        if self.array not in record.arrays:
            return None
        return {"values": finite_vector(record.arrays[self.array], self.array, record.id, length=self.length)}


def finite_vector(array: np.ndarray, name: str, where: str, *, length: int) -> np.ndarray:
    """Return a vector of finite float32, or raise `DataError`."""
    if array.dtype.kind not in "fiu" or array.shape != (length,):
        raise DataError(
            f"the array '{name}' is {array.dtype}{list(array.shape)}, not {length} numbers",
            where=where,
            do="give the step the array's length",
        )
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"the array '{name}' holds NaN, infinity or what no float32 can hold", where=where)
    return values
