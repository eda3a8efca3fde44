"""Building a data set: records through feature steps into a sealed folder of shards."""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from shards.errors import DataError
from shards.features.base import Feature
from shards.manifest import MANIFEST, LabelStats, Manifest, Split
from shards.schema import Sample
from shards.sealed import sealing
from shards.sources.base import Record
from shards.splits import group_split
from shards.writer import ShardWriter

LIBRARIES = ("numpy", "pymatgen", "safetensors")


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """How to divide a data set: ``by`` is ``id``, ``group`` or a tag; see `shards.splits.group_split`."""

    by: str
    fractions: tuple[tuple[str, float], ...] = (("train", 0.7), ("val", 0.1), ("test", 0.2))
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """A record after its feature steps: a sample, or the reason why there is none."""

    id: str
    sample: Sample | None
    reason: str = ""


def to_sample(record: Record, features: Mapping[str, Feature]) -> Sample:
    """Run every feature step on a record; raise `DataError` where one refuses it."""
    arrays, text = {}, {}
    for name, feature in features.items():
        value = feature(record)
        if isinstance(value, str):
            text[name] = value
        elif value is not None:
            arrays[name] = dict(value)
    return Sample(
        id=record.id,
        arrays=arrays,
        text=text,
        labels={name: float(value) for name, value in record.labels.items()},
        tags=record.tags,
        group=record.group or record.id,
    )


def build(
    records: Iterable[Record],
    features: Mapping[str, Feature],
    out: Path,
    *,
    name: str,
    source: str = "",
    splits: Mapping[str, SplitPlan] | None = None,
    workers: int = 1,
    shard_samples: int = 1024,
    max_quarantined: float = 0.05,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Build a data set, the same for any number of workers, and publish it as a sealed folder.

    Parameters
    ----------
    records : iterable of Record
        Source records, read once, in order.
    features : mapping of str to Feature
        Modality name to the step that computes it.
    out, name, source : Path, str, str
        Target folder (an earlier data set is replaced when the new one is complete), name, origin.
    splits : mapping of str to SplitPlan, optional
        Divisions to store.
    shard_samples, max_quarantined : int, float
        Samples a shard; share of records that may be left out because a feature step refused them.
    workers, progress : int, callable
        Processes that compute features; what is called with the number of records done.

    Raises
    ------
    DataError
        Where more than ``max_quarantined`` of the records were refused, or no sample is left.
    """
    specs = {modality: feature.spec(modality) for modality, feature in features.items()}
    tally = _Tally()
    with sealing(out) as stage:
        writer = ShardWriter(stage, specs, shard_samples=shard_samples)
        for done, outcome in enumerate(_outcomes(records, features, workers), start=1):
            if outcome.sample is not None:
                writer.write(outcome.sample)
            tally.add(outcome)
            if progress is not None:
                progress(done)
        tally.check(max_quarantined)
        manifest = Manifest(
            name=name,
            modalities=specs,
            shards=writer.close(),
            samples=len(tally.groups),
            coverage={modality: tally.coverage[modality] for modality in specs},
            labels={label: _statistics(values) for label, values in sorted(tally.labels.items())},
            splits={key: _split(tally.groups, plan) for key, plan in (splits or {}).items()},
            quarantined=tally.quarantined,
            libraries={library: version(library) for library in LIBRARIES},
            source=source,
        )
        (stage / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    return manifest


@dataclass
class _Tally:
    """What the manifest says of the samples, collected as they are written."""

    quarantined: dict[str, str] = field(default_factory=dict)
    coverage: Counter[str] = field(default_factory=Counter)
    labels: dict[str, list[float]] = field(default_factory=dict)
    groups: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count a sample, or keep the reason why there is none."""
        sample = outcome.sample
        if sample is None:
            self.quarantined[outcome.id] = outcome.reason
            return
        self.coverage.update(sample.modalities)
        self.groups[sample.id] = {**sample.tags, "id": sample.id, "group": sample.group}
        for label, value in sample.labels.items():
            self.labels.setdefault(label, []).append(value)

    def check(self, limit: float) -> None:
        """Raise `DataError` where more than ``limit`` of the records were refused, or none is left."""
        total = len(self.groups) + len(self.quarantined)
        if not self.groups or len(self.quarantined) > limit * total:
            example = next(iter(self.quarantined.items()), ("none", "the source is empty"))
            raise DataError(
                f"{len(self.quarantined)} of {total} records were refused, more than {limit:.0%}",
                where=example[0],
                why=example[1],
                do="mend the source, or allow more by max_quarantined",
            )


def _outcome(job: tuple[Record, Mapping[str, Feature]]) -> Outcome:
    record, features = job
    try:
        sample = to_sample(record, features)
        unknown = sorted(name for name, value in sample.labels.items() if not math.isfinite(value))
        if unknown:
            raise DataError(f"labels {unknown} are not finite", where=record.id, do="leave unknown labels out")
        for name, feature in features.items():
            value = sample.value(name)
            if value is not None:
                feature.spec(name).check(value, where=record.id)
    except DataError as error:
        return Outcome(record.id, None, str(error))
    return Outcome(record.id, sample)


def _outcomes(records: Iterable[Record], features: Mapping[str, Feature], workers: int) -> Iterator[Outcome]:
    jobs = ((record, features) for record in records)
    if workers <= 1:
        yield from map(_outcome, jobs)
        return
    # spawn: a forked child of a process that has threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_outcome, jobs, chunksize=8)


def _statistics(values: list[float]) -> LabelStats:
    array = np.asarray(values)
    return LabelStats(count=len(values), mean=array.mean(), std=array.std(), min=array.min(), max=array.max())


def _split(groups: Mapping[str, Mapping[str, str]], plan: SplitPlan) -> Split:
    missing = next((sample_id for sample_id, tags in groups.items() if plan.by not in tags), None)
    if missing is not None:
        raise DataError(f"a sample has no tag '{plan.by}' to split by", where=missing)
    by_id = {sample_id: tags[plan.by] for sample_id, tags in groups.items()}
    return group_split(by_id, by=plan.by, fractions=dict(plan.fractions), seed=plan.seed)
