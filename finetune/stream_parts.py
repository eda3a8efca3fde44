"""One part of a stream: what is computed of its materials, which are refused, and the file that holds both."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from finetune.incoming import Named, Work
from finetune.loading import Foundation, PropertyModel, load
from finetune.materials import to_known_sample
from finetune.predicted import Predictions
from shards.chunks import HOST_ERRORS
from shards.errors import ConfigError, DataError, MatloomError
from shards.schema import ModalitySpec, Sample
from shards.sealed import flush

META = b"matloom"


@dataclass(frozen=True)
class Predict:
    """What is computed of samples: the predictions of a property model."""

    model: PropertyModel
    what = "predict"

    @property
    def values(self) -> tuple[str, ...]:
        """The columns that must be finite; an interval may be unbounded."""
        return self.model.info.targets

    @property
    def specs(self) -> dict[str, ModalitySpec]:
        """The modalities that are read."""
        return dict(self.model.specs)

    def check(self, sample: Sample) -> None:
        """Raise `DataError` for a sample that lacks what the model needs."""
        self.model.check(sample)

    def __call__(self, samples: list[Sample]) -> dict[str, np.ndarray]:
        """Return the columns of `Predictions.to_frame` for N samples, each (N,)."""
        prediction = self.model.estimate(samples, batch_size=max(len(samples), 1))
        return Predictions([sample.id for sample in samples], self.model.info, prediction).columns()


@dataclass(frozen=True)
class Embed:
    """What is computed of samples: the embeddings of one modality."""

    model: Foundation
    modality: str
    what = "embed"
    values = ("embedding",)

    @property
    def specs(self) -> dict[str, ModalitySpec]:
        """The modality that is read."""
        return {self.modality: self.model.model.specs[self.modality]}

    def check(self, sample: Sample) -> None:
        """Raise `DataError` for a sample without the modality."""
        if self.modality not in sample.modalities:
            raise DataError(f"the material has no modality '{self.modality}'", where=sample.id)

    def __call__(self, samples: list[Sample]) -> dict[str, np.ndarray]:
        """Return ``embedding`` (N, D) of N samples."""
        return {"embedding": self.model.embed(samples, self.modality, batch_size=max(len(samples), 1))}


Task = Predict | Embed


def part_elsewhere(folder: str, modality: str | None, batch_size: int, workers: int, job: tuple[Work, Path]) -> str:
    """Compute a part in a process that has no model yet."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    return compute_part(_task(folder, modality), batch_size, job)


@lru_cache(maxsize=1)
def _task(folder: str, modality: str | None) -> Task:
    model = load(folder)
    return Predict(model) if isinstance(model, PropertyModel) else Embed(model, modality or model.modalities[0])


def compute_part(task: Task, batch_size: int, job: tuple[Work, Path]) -> str:
    """Compute one part and publish it by a rename."""
    work, path = job
    ids: list[str] = []
    kept: list[str] = []
    blocks: list[dict[str, np.ndarray]] = []
    refused: list[tuple[str, str]] = []
    materials = iter(work)
    while batch := list(islice(materials, batch_size)):
        samples = [sample for sample in (_sample(named, task, refused) for named in batch) if sample is not None]
        ids += [id for id, _ in batch]
        if samples:
            columns, finite = _finite(task(samples), task.values)
            refused += [(s.id, "the result is not finite") for s, good in zip(samples, finite, strict=True) if not good]
            kept += [s.id for s, good in zip(samples, finite, strict=True) if good]
            blocks.append(columns)
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]} if blocks else task([])
    _write_part(path, kept, joined, {"read": len(ids), "ids": ids_digest(ids), "quarantined": refused})
    return f"{path.name}: {len(kept)} rows, {len(refused)} quarantined"


def _sample(named: Named, task: Task, refused: list[tuple[str, str]]) -> Sample | None:
    """Read one material; what it raises of its own puts it aside with the reason."""
    id, read = named
    try:
        sample = to_known_sample(read(), task.specs, id=id)
        task.check(sample)
        for name, spec in task.specs.items():
            value = sample.value(name)
            if value is not None:
                # one wrong shape would spoil its batch
                spec.check(value, where=id)
        return sample
    except ConfigError:
        raise
    except MatloomError as error:
        refused.append((id, str(error)))
    except MemoryError:
        raise
    except Exception as error:  # a library that one strange material upsets must not end the stream
        if isinstance(error, OSError) and error.errno in HOST_ERRORS:
            raise
        refused.append((id, f"{type(error).__name__}: {error}"))
    return None


def _finite(columns: dict[str, np.ndarray], values: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the rows of which every value is finite, and which these are."""
    checks = [np.isfinite(columns[name]).reshape(len(columns[name]), -1).all(axis=1) for name in values]
    finite = np.logical_and.reduce(checks)
    return {name: column[finite] for name, column in columns.items()}, finite


def _write_part(path: Path, ids: list[str], columns: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {"id": pa.array(ids, pa.string())}
    for name, column in columns.items():
        arrays[name] = (
            pa.array(column)
            if column.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), column.shape[1])
        )
    table = pa.table(arrays).replace_schema_metadata({META: json.dumps(meta).encode()})
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    pq.write_table(table, aside)
    flush(aside)
    os.replace(aside, path)


def part_meta(path: Path) -> dict[str, Any]:
    """Return how many materials a part read, the digest of their ids, and which were refused, and why."""
    import pyarrow.parquet as pq

    try:
        return json.loads(pq.read_schema(path).metadata[META])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("a part of the result is damaged", where=path, why=str(error), do=f"rm {path}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole, or not there."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    flush(aside)
    os.replace(aside, path)


def ids_digest(ids: list[str]) -> str:
    """Return the digest of ids in their order."""
    return xxhash.xxh3_128_hexdigest("\0".join(ids).encode("utf-8", "surrogateescape"))
