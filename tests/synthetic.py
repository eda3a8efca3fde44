"""A tiny synthetic data set: modalities are noisy views of a hidden cause, and many are missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import xxhash

from shards.build import SplitPlan, build
from shards.errors import DataError
from shards.features.base import Feature
from shards.features.text import TextFeature
from shards.manifest import Manifest
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record

WIDTH, POINTS = 6, 24


def hidden(sample_id: str) -> np.ndarray:
    """The cause that all modalities of a sample share, (4,)."""
    return generator(sample_id).normal(size=4)


def generator(*key: str) -> np.random.Generator:
    return np.random.default_rng(xxhash.xxh64_intdigest("\0".join(key).encode()))


class ToyFeature(Feature):
    """A view of the hidden cause; ``missing`` is the share of the samples that lack it."""

    missing: float = 0.0

    def __call__(self, record: Record) -> Value | None:
        if record.tags.get("broken") == self.step:
            raise DataError("this record is broken on purpose", where=record.id)
        rng = generator(self.step, record.id)
        if rng.random() < self.missing:
            return None
        return self.view(hidden(record.id), rng)

    def view(self, cause: np.ndarray, rng: np.random.Generator) -> Value:
        raise NotImplementedError


class ToyVector(ToyFeature):
    kind: ClassVar[Kind] = "vector"
    step: str

    def spec(self, name: str) -> ModalitySpec:
        field = FieldSpec(dtype="float32", shape=(WIDTH,), unit="eV")
        return ModalitySpec(name=name, kind="vector", fields={"values": field}, feature=self.model_dump())

    def view(self, cause: np.ndarray, rng: np.random.Generator) -> Value:
        mixing = generator("mixing", self.step).normal(size=(WIDTH, len(cause)))
        return {"values": (mixing @ cause + 0.05 * rng.normal(size=WIDTH)).astype(np.float32)}


class ToySpectrum(ToyFeature):
    kind: ClassVar[Kind] = "spectrum"
    step: Literal["toy_spectrum"] = "toy_spectrum"

    def spec(self, name: str) -> ModalitySpec:
        field = FieldSpec(dtype="float16", shape=(POINTS,))
        return ModalitySpec(name=name, kind="spectrum", fields={"intensity": field}, feature=self.model_dump())

    def view(self, cause: np.ndarray, rng: np.random.Generator) -> Value:
        axis = np.linspace(-2, 2, POINTS)
        return {"intensity": np.exp(-((axis[:, None] - cause) ** 2)).sum(1).astype(np.float16)}


class ToyGraph(ToyFeature):
    kind: ClassVar[Kind] = "graph"
    step: Literal["toy_graph"] = "toy_graph"

    def spec(self, name: str) -> ModalitySpec:
        return ModalitySpec(name=name, kind="graph", fields=GRAPH_FIELDS, feature=self.model_dump())

    def view(self, cause: np.ndarray, rng: np.random.Generator) -> Value:
        return graph(rng, atoms=int(rng.integers(1, 6)), edges=int(rng.integers(0, 9)))


GRAPH_FIELDS = {
    "number": FieldSpec(dtype="uint8", shape=("atoms",)),
    "position": FieldSpec(dtype="float32", shape=("atoms", 3), unit="angstrom"),
    "edge": FieldSpec(dtype="uint16", shape=(2, "edges"), index_of="atoms"),
    "cell": FieldSpec(dtype="float64", shape=(3, 3)),
}


def graph(rng: np.random.Generator, *, atoms: int, edges: int) -> dict[str, np.ndarray]:
    """Arrays that satisfy `GRAPH_FIELDS`."""
    return {
        "number": rng.integers(1, 90, atoms, dtype=np.uint8),
        "position": rng.normal(size=(atoms, 3)).astype(np.float32),
        "edge": rng.integers(0, atoms, (2, edges)).astype(np.uint16),
        "cell": rng.normal(size=(3, 3)),
    }


FEATURES: dict[str, Feature] = {
    "a": ToyVector(step="a"),
    "b": ToyVector(step="b", missing=0.3),
    "c": ToyVector(step="c", missing=0.4),
    "dos": ToySpectrum(missing=0.3),
    "crystal": ToyGraph(missing=0.2),
    "text": TextFeature(),
}
SPLITS = {"chemical_system": SplitPlan(by="chemical_system", fractions={"train": 0.6, "val": 0.2, "test": 0.2})}


def records(count: int = 60) -> Iterator[Record]:
    """Source records whose ids hold dots and slashes, in groups of three of one chemical system."""
    for i in range(count):
        text = f"material number {i} of group {i // 3}" if i % 4 else None
        yield Record(
            id=f"mp/{i // 3}.Li0.{i}CoO2",
            text=text,
            labels={"gap_ev": 0.1 * i} if i % 2 else {},
            tags={"chemical_system": f"X{i // 3}", "formula": f"LiCoO{i}"},
        )


def build_toy(folder: Path, *, count: int = 60, workers: int = 1, shard_samples: int = 16) -> Manifest:
    """Build the data set."""
    return build(
        records(count), FEATURES, folder, name="toy", splits=SPLITS, workers=workers,
        shard_samples=shard_samples,
    )  # fmt: skip
