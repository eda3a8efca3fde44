"""One chunk of a build: some records of a source become one shard, wherever the chunk is computed.

A chunk is a slice of the source's list, so the shards do not depend on who computes them, or in which
order. Every try at a chunk writes into a folder of its own; the process that leads the build takes the
files of one try into the stage, their report last and by a rename. So a worker that was given up for dead
disturbs nobody, a chunk that has a report is finished, and a build that was killed goes on from there.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import xxhash

from shards.errors import DataError, MatloomError
from shards.features.base import Feature
from shards.labels import flat_labels
from shards.manifest import OverlayOf, ShardEntry
from shards.overlay import OverlayPlan
from shards.reader import Dataset
from shards.schema import Sample
from shards.sealed import sha256
from shards.sources.base import Item, Record, Source
from shards.splits import SampleInfo
from shards.writer import ShardWriter

# the square of a label must be a number, or its statistics are none
MAX_LABEL = 1e100
# troubles of the host, of which no record is to blame
HOST_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE}


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What a worker needs to write one shard.

    Attributes
    ----------
    number : int
        Position in the build, from 0.
    tries : Path
        The folder in which each try makes a folder of its own; on storage that all workers share.
    features : mapping of str to Feature
        Modality name to the step that computes it.
    source : Source, optional
        Reads ``items``; None where the records themselves are given.
    items, records : tuple
        What to build: places in the source, or records.
    shard_bytes : int
        A shard that grows beyond this is followed by another one of the same chunk.
    with_prototype : bool
        Tag samples with the prototype of their structure where the source does not.
    base, overlay_of : str, OverlayOf, optional
        Where the data set is that the chunk is an overlay of, and which it is.
    settings : str
        Everything else that the bytes depend on; part of `digest`.
    """

    number: int
    tries: Path
    features: Mapping[str, Feature]
    source: Source | None = None
    items: tuple[Item, ...] = ()
    records: tuple[Record, ...] = ()
    shard_bytes: int
    with_prototype: bool = False
    base: str | None = None
    overlay_of: OverlayOf | None = None
    settings: str = ""

    @property
    def size(self) -> int:
        """Number of records."""
        return len(self.items) + len(self.records)

    @property
    def digest(self) -> str:
        """What tells a finished chunk from one of another source or other settings; empty for given records."""
        if self.records:
            return ""
        listed = [[item.id, item.ref, item.stamp] for item in self.items]
        text = json.dumps([self.settings, self.shard_bytes, self.with_prototype, listed], sort_keys=True)
        return xxhash.xxh3_128_hexdigest(text.encode())


@dataclass(kw_only=True)
class ChunkReport:
    """What a finished chunk holds.

    Attributes
    ----------
    number, digest : int, str
        Those of the chunk.
    entries : list of ShardEntry
        Its shards; none where every record was refused.
    samples : list of SampleInfo
        Ids, groups, tags and labels in the order of the shard.
    coverage : dict of str to int
        Samples that have each modality.
    quarantined : list of (str, str)
        Id and reason of each record that was refused.
    folder : Path, optional
        Where the files of the try are until `keep` takes them.
    """

    number: int
    digest: str = ""
    entries: list[ShardEntry] = field(default_factory=list)
    samples: list[SampleInfo] = field(default_factory=list)
    coverage: dict[str, int] = field(default_factory=dict)
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    folder: Path | None = None

    @property
    def size(self) -> int:
        """Number of records that were read."""
        return len(self.samples) + len(self.quarantined)

    def keep(self, stage: Path) -> None:
        """Take the files of the try into the stage, and then the report by one rename."""
        assert self.folder is not None
        for entry in self.entries:
            for name in (entry.file, entry.index):
                os.replace(self.folder / name, stage / name)
        table = {
            "number": self.number,
            "digest": self.digest,
            "entries": [entry.model_dump() for entry in self.entries],
            "samples": [asdict(sample) for sample in self.samples],
            "coverage": self.coverage,
            "quarantined": self.quarantined,
        }
        partial = self.folder / "report.json"
        partial.write_text(json.dumps(table))
        os.replace(partial, _report_path(stage, self.number))
        shutil.rmtree(self.folder, ignore_errors=True)


def _report_path(stage: Path, number: int) -> Path:
    return stage / f"chunk-{number:06d}.json"


def finished(chunk: Chunk, stage: Path) -> ChunkReport | None:
    """Return the report of a chunk that an earlier build finished with the same settings, its files intact."""
    try:
        table = json.loads(_report_path(stage, chunk.number).read_text())
        report = ChunkReport(
            number=table["number"],
            digest=table["digest"],
            entries=[ShardEntry(**entry) for entry in table["entries"]],
            samples=[SampleInfo(**sample) for sample in table["samples"]],
            coverage=table["coverage"],
            quarantined=[(sample_id, reason) for sample_id, reason in table["quarantined"]],
        )
        if not chunk.digest or report.digest != chunk.digest:
            return None
        for entry in report.entries:
            hashes = sha256(stage / entry.file), sha256(stage / entry.index)
            if hashes != (entry.sha256, entry.index_sha256):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report


def build_chunk(chunk: Chunk) -> ChunkReport:
    """Read, compute and write the records of a chunk; records that are refused are kept as reasons.

    Raises
    ------
    DataError
        Where the folder of the tries is not on this host, or another base of the overlay is.
    OSError
        Where the host has no room or no files left.
    ConfigError
        Where a library that a step needs is missing.
    """
    if not chunk.tries.is_dir():
        raise DataError(
            "the folder of the build is not on this worker",
            where=f"{socket.gethostname()}: {chunk.tries}",
            do="build into a folder that all workers share",
        )
    folder = Path(tempfile.mkdtemp(prefix=f"{chunk.number:06d}-", dir=chunk.tries))
    report = ChunkReport(number=chunk.number, digest=chunk.digest, folder=folder)
    coverage: Counter[str] = Counter()
    specs = {name: feature.spec(name) for name, feature in chunk.features.items()}
    writer = ShardWriter(
        folder,
        specs,
        name=f"shard-{chunk.number:06d}",
        shard_bytes=chunk.shard_bytes,
        shard_samples=max(chunk.size, 1),
    )
    plan = _overlay_plan(chunk.base, chunk.overlay_of, tuple(specs)) if chunk.base and chunk.overlay_of else None
    for record_id, outcome in _outcomes(chunk):
        if isinstance(outcome, str):
            report.quarantined.append((record_id, outcome))
            continue
        try:
            sample = outcome if plan is None else plan.reduced(outcome)
            writer.write(sample)
        except DataError as error:
            report.quarantined.append((record_id, str(error)))
            continue
        coverage.update(sample.modalities)
        info = SampleInfo(id=sample.id, group=sample.group, tags=dict(sample.tags), labels=dict(sample.labels))
        report.samples.append(info)
    report.entries = writer.close()
    report.coverage = {name: coverage[name] for name in specs}
    return report


@lru_cache(maxsize=1)
def _overlay_plan(base: str, overlay_of: OverlayOf, modalities: tuple[str, ...]) -> OverlayPlan:
    """Return what may enter an overlay of the data set at ``base``, opened once a process and build."""
    plan = OverlayPlan(Dataset(base), modalities)
    if plan.overlay_of != overlay_of:
        raise DataError(
            "the base of the overlay is another one here than where the build began",
            where=f"{socket.gethostname()}: {base}",
            why=f"its manifest has sha256 {plan.overlay_of.sha256}, not {overlay_of.sha256}",
            do="name a base that all workers share, and leave it as it is during the build",
        )
    return plan


def _outcomes(chunk: Chunk) -> Iterator[tuple[str, Sample | str]]:
    """Yield the id of each record with its sample, or with the reason why there is none."""
    for work in chunk.items or chunk.records:
        try:
            if isinstance(work, Item):
                assert chunk.source is not None
                record = chunk.source.read(work)
                if record.id != work.id:
                    raise DataError(f"the source listed '{work.id}' and read '{record.id}'")
            else:
                record = work
            yield work.id, to_sample(record, chunk.features, with_prototype=chunk.with_prototype)
        except DataError as error:
            yield work.id, str(error)
        except (MatloomError, MemoryError):
            raise
        except OSError as error:
            if error.errno in HOST_ERRORS:
                raise
            yield work.id, f"{type(error).__name__}: {error}"
        except Exception as error:  # a library that one strange record upsets must not end the build
            yield work.id, f"{type(error).__name__}: {error}"


def to_sample(record: Record, features: Mapping[str, Feature], *, with_prototype: bool = False) -> Sample:
    """Run every feature step on a record; raise `DataError` where one refuses it."""
    arrays, text = {}, {}
    for name, feature in features.items():
        value = feature(record)
        if isinstance(value, str):
            text[name] = value
        elif value is not None:
            arrays[name] = dict(value)
    labels = flat_labels(record.labels)
    unknown = sorted(name for name, value in labels.items() if not math.isfinite(value))
    if unknown:
        raise DataError(f"labels {unknown} are not finite", where=record.id, do="leave unknown labels out")
    absurd = sorted(name for name, value in labels.items() if abs(value) > MAX_LABEL)
    if absurd:
        raise DataError(f"labels {absurd} are beyond {MAX_LABEL:g}", where=record.id, do="leave them out, or mend them")
    tags = dict(record.tags)
    if with_prototype and "prototype" not in tags and record.structure is not None:
        from shards.fingerprint import prototype_label

        tags["prototype"] = prototype_label(record.structure)
    return Sample(id=record.id, arrays=arrays, text=text, labels=labels, tags=tags, group=record.group or record.id)
