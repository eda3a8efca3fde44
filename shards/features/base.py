"""The feature contract: a step turns what a source gave into the arrays of one modality."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from shards.plugins import Registry
from shards.schema import Kind, ModalitySpec, Strict, Value
from shards.sources.base import Record, Source


class Feature(Strict):
    """A feature step; its fields are its parameters and go into the manifest.

    Registered by ``@FEATURES.register(name)``, or found by the entry-point group ``matloom.features``.

    Attributes
    ----------
    kind : str
        Kind of the modality that it makes (class attribute).
    """

    kind: ClassVar[Kind]
    step: str

    @abstractmethod
    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of the modality called ``name`` that this step makes."""

    def fitted(self, source: Source) -> Feature:
        """Return the step as a build of ``source`` uses it, once before the build: with what it takes from all records.

        That may be names of columns and categories, never statistics of values: those are learned from the training
        part alone.

        Raises
        ------
        ConfigError
            Where the step cannot be used with this source.
        """
        return self

    @abstractmethod
    def __call__(self, record: Record) -> Value | None:
        """Return the modality's value, or None where the record lacks what it is made of."""


FEATURES: Registry[type[Feature]] = Registry(
    "feature",
    {
        name: f"shards.features.{name}"
        for name in (
            "charge_density",
            "conformer",
            "crystal",
            "dos",
            "fingerprint",
            "image",
            "molecule",
            "robocrys",
            "smiles",
            "spectrum",
            "table",
            "text",
            "vector",
            "xrd",
        )
    },
    key="step",
)
