"""A description in words."""

from __future__ import annotations

from typing import ClassVar, Literal

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.schema import Kind, ModalitySpec, Value
from shards.sources.base import Record


@FEATURES.register("text")
class TextFeature(Feature):
    """Text without white space at its ends."""

    kind: ClassVar[Kind] = "text"
    step: Literal["text"] = "text"

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a text."""
        return ModalitySpec(name=name, kind=self.kind, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return the text, or None without one; an empty one is refused."""
        if record.text is None:
            return None
        text = record.text.strip()
        if not text:
            raise DataError("the text is empty", where=record.id, do="leave the text out of the record")
        return text
