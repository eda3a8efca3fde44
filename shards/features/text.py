"""A description in words: as the source gives it, or from a template."""

from __future__ import annotations

import re
from string import Formatter
from typing import ClassVar, Literal

from pydantic import field_validator

from shards.errors import ConfigError, DataError, suggest
from shards.features.base import FEATURES, Feature
from shards.features.facts import FACTS, Facts
from shards.schema import Kind, ModalitySpec, Value
from shards.sources.base import Record, Source

PLACEHOLDER = re.compile(r"[A-Za-z_]\w*")
NUMBER_FORMAT = re.compile(r"(\.\d{1,2})?[efgd]?")


@FEATURES.register("text")
class TextFeature(Feature):
    """Text without white space at its ends.

    Attributes
    ----------
    template : str
        Empty: the record's own text. Else a text such as ``"{formula} crystallises in {spacegroup_symbol}"``, whose
        placeholders are tags and columns of the record and facts of its structure (`shards.features.facts.FACTS`), in
        this order; a number may have a format (``{density:.2f}``). A record that lacks one of them has no text.
        Labels are refused: a model that reads what it is to predict learns nothing.
    """

    kind: ClassVar[Kind] = "text"
    step: Literal["text"] = "text"
    template: str = ""

    @field_validator("template")
    @classmethod
    def _plain(cls, template: str) -> str:
        for _, name, style, conversion in Formatter().parse(template):
            if name is not None and (not PLACEHOLDER.fullmatch(name) or conversion):
                raise ValueError(f"'{name}' is no placeholder: the name of a tag, a column or a fact of the structure")
            if style and not NUMBER_FORMAT.fullmatch(style):
                raise ValueError(f"the format '{style}' of '{name}' is none for a number, such as '.2f'")
        return template

    def fitted(self, source: Source) -> Feature:
        """Return the step itself; refuse labels of the source, and placeholders that a table cannot fill."""
        labels = getattr(source, "label_names", ())
        leaking = sorted(self._names & set(labels))
        if leaking:
            raise _leak(leaking)
        if hasattr(source, "placeholders"):
            known = {*source.placeholders, *FACTS}
            unknown = next(iter(sorted(self._names - known)), None)
            if unknown is not None:
                raise ConfigError(f"the template's '{unknown}' is no tag, column or fact", why=suggest(unknown, known))
        return self

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a text."""
        return ModalitySpec(name=name, kind=self.kind, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return the text, or None without one; an empty one is refused."""
        text = self._filled(record) if self.template else record.text
        if text is None:
            return None
        text = text.strip()
        if not text:
            raise DataError("the text is empty", where=record.id, do="leave the text out of the record")
        return text

    @property
    def _names(self) -> set[str]:
        return {name for _, name, _, _ in Formatter().parse(self.template) if name is not None}

    def _filled(self, record: Record) -> str | None:
        leaking = sorted(self._names & set(record.labels))
        if leaking:
            raise _leak(leaking)
        facts = None if record.structure is None else Facts(record.structure)
        known = {**record.columns, **record.tags}
        parts = []
        for literal, name, style, _ in Formatter().parse(self.template):
            parts.append(literal)
            if name is None:
                continue
            value = known.get(name)
            if value is None and name in FACTS and facts is not None:
                value = facts[name]
            if value is None:
                return None
            if isinstance(value, str) and style:
                raise ConfigError(f"the template gives '{name}' the format '{style}', and it is no number", why=value)
            parts.append(value if isinstance(value, str) else _written(value, style))
        return "".join(parts)


def _written(value: float, style: str | None) -> str:
    return format(round(value), "d") if style == "d" else format(value, style or ".4g")


def _leak(names: list[str]) -> ConfigError:
    return ConfigError(
        f"the template names the labels {names}",
        why="what is to be predicted would be written into an input",
        do="take them out of the template",
    )
