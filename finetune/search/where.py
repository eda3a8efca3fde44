"""Which candidates a search may find: by their elements and by ranges of their labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan

import numpy as np

from shards.errors import ConfigError, suggest
from shards.schema import Sample

SYMBOL = re.compile(r"[A-Z][a-z]?")
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Where:
    """Conditions that all have to hold.

    Attributes
    ----------
    elements, without : frozenset of str
        Symbols that the formula (tag ``formula``) must have, and must not have.
    labels : mapping of str to (float, float)
        Least and largest value, both allowed; a sample whose label is unknown is not found.
    """

    elements: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    labels: Mapping[str, Range] = field(default_factory=dict)

    def mask(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return (N,) bool.

        Raises
        ------
        ConfigError
            Where no sample has a label that is asked for.
        """
        for name in self.labels:
            if not any(name in sample.labels for sample in samples):
                known = {label for sample in samples for label in sample.labels}
                raise ConfigError(f"no candidate has a label '{name}'", why=suggest(name, known))
        return np.array([self._holds(sample) for sample in samples], dtype=bool)

    def _holds(self, sample: Sample) -> bool:
        if self.elements or self.without:
            found = set(SYMBOL.findall(sample.tags.get("formula", "")))
            if not found or not self.elements <= found or self.without & found:
                return False
        return all(low <= sample.labels.get(name, -inf) <= high for name, (low, high) in self.labels.items())


def parse_range(text: str) -> Range:
    """Read ``1.0..1.6``, ``1.0..`` or ``..1.6``."""
    low, dots, high = text.partition("..")
    try:
        ends = float(low) if low.strip() else -inf, float(high) if high.strip() else inf
    except ValueError:
        ends = inf, -inf
    if not dots or any(map(isnan, ends)) or not ends[0] <= ends[1] or ends == (-inf, inf):
        raise ConfigError(f"'{text}' is no range", do="write LOW..HIGH, LOW.. or ..HIGH, as in 1.0..1.6")
    return ends


def parse_ranges(texts: Sequence[str]) -> dict[str, Range]:
    """Read several of ``label=1.0..1.6``."""
    found = {}
    for text in texts:
        name, equals, ends = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"'{text}' is no condition", do="write LABEL=LOW..HIGH")
        found[name] = parse_range(ends)
    return found
