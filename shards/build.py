"""Building a data set: a source through feature steps into a sealed folder of shards."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from shards.chunks import Chunk, ChunkReport, build_chunk, finished
from shards.errors import DataError
from shards.executors import AGAIN, compute
from shards.features.base import Feature
from shards.manifest import FORMAT, MANIFEST, LabelStats, Manifest, OverlayOf
from shards.overlay import OverlayPlan
from shards.reader import Dataset
from shards.sealed import sealing
from shards.sources.base import Item, Record, Source
from shards.splits import SampleInfo, SplitPlan, make_split
from shards.store import is_url

LIBRARIES = ("numpy", "pillow", "pymatgen", "rdkit", "robocrys", "safetensors", "spglib")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a build is.

    Attributes
    ----------
    done, total : int, int or None
        Records that were read, and how many there are, where that is known.
    quarantined, reused : int
        Records that were refused, and those that an earlier try had finished.
    """

    done: int
    total: int | None
    quarantined: int
    reused: int


def build(
    source: Source | Iterable[Record],
    features: Mapping[str, Feature],
    out: Path,
    *,
    name: str,
    splits: Mapping[str, SplitPlan] | None = None,
    overlay_of: str | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    shard_samples: int = 256,
    shard_bytes: int = 256 << 20,
    max_quarantined: float = 0.05,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Build a data set and publish it as a sealed folder; its bytes do not depend on who computed them.

    A build of a `Source` that was killed leaves its finished shards beside ``out``; the same call goes on
    from them, and computes anew what belongs to records or settings that have changed since.

    Parameters
    ----------
    source, features : Source or iterable of Record, mapping of str to Feature
        Where the records come from (an iterable is read once and cannot be resumed), and the step of each modality.
    out, name, splits : Path, str, mapping of str to SplitPlan
        Target folder (an earlier data set is replaced when the new one is complete), name, divisions to store.
    overlay_of : str, optional
        The data set that this one adds modalities to: it holds some of its ids, and of their labels and tags
        only what the other lacks.
    workers, scheduler : int, str, optional
        Local processes, or the address of a Dask scheduler; see `shards.executors.compute`.
    shard_samples, shard_bytes : int
        Records a shard; bytes after which it is continued in another file.
    max_quarantined, progress : float, callable
        Share of records that may be refused before the build stops; what is called after each shard.

    Raises
    ------
    DataError
        Where more than ``max_quarantined`` of the records were refused, no sample or none with one of the
        modalities is left, two records have one id, another process is building the same folder, or the disk is full.
    """
    plans = dict(splits or {})
    if isinstance(source, Source):
        features = {modality: feature.fitted(source) for modality, feature in features.items()}
    works = _listed(source) if isinstance(source, Source) else source
    tally = _Tally(max_quarantined, total=len(works) if isinstance(works, list) else None)
    with _stage(out) as (stage, tries):
        with_prototype = any(plan.by == "prototype" for plan in plans.values())
        common = {"tries": tries, "shard_bytes": shard_bytes, "with_prototype": with_prototype}
        template = _template(source, features, overlay_of, **common)
        for report, reused in _reports(_chunks(template, works, shard_samples), stage, workers, scheduler):
            tally.add(report, reused=reused)
            if progress is not None:
                progress(tally.progress)
        manifest = tally.manifest(name, source, features, plans).model_copy(update={"overlay_of": template.overlay_of})
        (stage / MANIFEST).write_text(manifest.model_dump_json(indent=1))
        _keep_only(stage, manifest)
    return manifest


@contextmanager
def _stage(out: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of what is finished, which is published as ``out``, and that of the tries."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with alone(out), sealing(out, resume=True) as stage:
            tries = stage.resolve().with_name(f"{stage.name}.tries")
            shutil.rmtree(tries, ignore_errors=True)
            tries.mkdir()
            try:
                yield stage, tries
            finally:
                shutil.rmtree(tries, ignore_errors=True)
    except OSError as error:
        where, why = error.filename or out, error.strerror or str(error)
        raise DataError("the files of the build cannot be written", where=where, why=why, do=AGAIN) from error


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the right to write the data set ``out``, or raise `DataError` where another process holds it."""
    real = out.resolve()
    path = real.parent / f".{real.name}.lock"
    try:
        with FileLock(path, timeout=0):
            yield
            path.unlink(missing_ok=True)
    except Timeout:
        raise DataError("another process is writing this data set", where=out, do="wait for it to end") from None


def _listed(source: Source) -> list[Item]:
    items = list(source.items())
    _refuse_twins(item.id for item in items)
    return items


def _refuse_twins(ids: Iterable[str]) -> None:
    twins = [sample_id for sample_id, count in Counter(ids).items() if count > 1]
    if twins:
        shown = ", ".join(map(repr, twins[:5]))
        raise DataError(f"{len(twins)} times, records have the same id", where=shown, do="make the ids unique")


def _template(
    source: Source | Iterable[Record], features: Mapping[str, Feature], overlay_of: str | None, **common: Any
) -> Chunk:
    """Return a chunk without records: what all chunks of a build have in common."""
    base = overlay_of if overlay_of is None or is_url(overlay_of) else str(Path(overlay_of).resolve())
    overlay = None if base is None else OverlayPlan(Dataset(base), features).overlay_of
    return Chunk(
        number=0,
        features=features,
        source=source if isinstance(source, Source) else None,
        base=base,
        overlay_of=overlay,
        settings=_settings(source, features, overlay),
        **common,
    )


def _settings(source: Source | Iterable[Record], features: Mapping[str, Feature], overlay_of: OverlayOf | None) -> str:
    """What the bytes of every chunk depend on beside its own items."""
    origin = source.model_dump(mode="json") if isinstance(source, Source) else {}
    specs = {name: feature.spec(name).model_dump(mode="json") for name, feature in features.items()}
    base = overlay_of.sha256 if overlay_of else ""
    return json.dumps([FORMAT, origin, specs, base, library_versions()], sort_keys=True)


def library_versions() -> dict[str, str]:
    """Return the versions of what the bytes of a data set depend on, as far as it is installed."""
    found = {}
    for library in ("matloom", *LIBRARIES):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _chunks(template: Chunk, works: Iterable[Item] | Iterable[Record], size: int) -> Iterator[Chunk]:
    remaining, number = iter(works), 0
    while part := tuple(islice(remaining, size)):
        if template.source is None:
            yield replace(template, number=number, records=part)  # type: ignore[arg-type]
        else:
            yield replace(template, number=number, items=part)  # type: ignore[arg-type]
        number += 1


def _reports(
    chunks: Iterable[Chunk], stage: Path, workers: int, scheduler: str | None
) -> Iterator[tuple[ChunkReport, bool]]:
    """Yield the report of each chunk once its files are in the stage, and whether an earlier build had finished it."""
    ready: list[ChunkReport] = []

    def unfinished() -> Iterator[Chunk]:
        for chunk in chunks:
            report = finished(chunk, stage)
            if report is None:
                yield chunk
            else:
                ready.append(report)

    for report in compute(build_chunk, unfinished(), workers=workers, scheduler=scheduler):
        report.keep(stage)
        while ready:
            yield ready.pop(), True
        yield report, False
    for report in ready:
        yield report, True


@dataclass
class _Tally:
    """The chunks that are finished, and when to stop."""

    limit: float
    total: int | None
    reports: list[ChunkReport] = field(default_factory=list)
    done: int = 0
    quarantined: int = 0
    reused: int = 0

    def add(self, report: ChunkReport, *, reused: bool) -> None:
        """Count a chunk; stop a build that has more refused records than the whole of it may have."""
        self.reports.append(report)
        self.done += report.size
        self.quarantined += len(report.quarantined)
        self.reused += report.size if reused else 0
        if self.total is not None and self.quarantined > self.limit * self.total:
            self._stop()

    @property
    def progress(self) -> Progress:
        """How far the build is."""
        return Progress(done=self.done, total=self.total, quarantined=self.quarantined, reused=self.reused)

    def manifest(
        self,
        name: str,
        source: Source | Iterable[Record],
        features: Mapping[str, Feature],
        plans: Mapping[str, SplitPlan],
    ) -> Manifest:
        """Return the manifest of all chunks, or raise `DataError` where they are no data set."""
        if self.done == self.quarantined or self.quarantined > self.limit * self.done:
            self._stop()
        self.reports.sort(key=lambda report: report.number)
        samples = [sample for report in self.reports for sample in report.samples]
        _refuse_twins(sample.id for sample in samples)
        coverage: Counter[str] = Counter()
        for report in self.reports:
            coverage.update(report.coverage)
        for modality in features:
            if not coverage[modality]:
                raise DataError(
                    f"no record has the modality '{modality}'",
                    why="the source gives nothing that its feature step is made of",
                    do="leave the modality out, or check what the source is told to read",
                )
        return Manifest(
            name=name,
            modalities={modality: feature.spec(modality) for modality, feature in features.items()},
            shards=[entry for report in self.reports for entry in report.entries],
            samples=len(samples),
            coverage={modality: coverage[modality] for modality in features},
            labels=label_statistics(samples),
            splits={key: make_split(plan, samples) for key, plan in plans.items()},
            quarantined=dict(pair for report in self.reports for pair in report.quarantined),
            libraries=library_versions(),
            source=source.model_dump(mode="json") if isinstance(source, Source) else {},
        )

    def _stop(self) -> None:
        refused = [pair for report in self.reports for pair in report.quarantined]
        example = refused[0] if refused else (None, "the source is empty")
        raise DataError(
            f"{self.quarantined} of {self.total or self.done} records were refused, more than {self.limit:.0%}",
            where=example[0],
            why="; ".join(line.strip() for line in example[1].splitlines()),
            do="mend the source, or allow more by max_quarantined",
        )


def label_statistics(samples: Iterable[SampleInfo]) -> dict[str, LabelStats]:
    """Return what the manifest says of each label that some sample has."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        for label, value in sample.labels.items():
            values.setdefault(label, []).append(value)
    return {label: _statistics(values[label]) for label in sorted(values)}


def _statistics(values: list[float]) -> LabelStats:
    array = np.asarray(values)
    return LabelStats(count=len(values), mean=array.mean(), std=array.std(), min=array.min(), max=array.max())


def _keep_only(stage: Path, manifest: Manifest) -> None:
    """Remove reports of chunks, and what a try with other settings left behind."""
    known = {MANIFEST} | {file for entry in manifest.shards for file in (entry.file, entry.index)}
    for path in stage.iterdir():
        if path.name not in known:
            path.unlink()
