"""Predictions and embeddings of any number of materials: part by part, in order, by several processes, resumable.

The result is a folder of numbered Parquet parts, which ``pandas.read_parquet(folder)`` reads as one table. A part is
written aside and renamed, so that one that is there is whole; it says in its metadata which materials were refused, and
why. Which materials a part holds depends on nothing but the source and its size, so that the bytes are the same whoever
computes it, and after a kill only what is missing is computed.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from finetune.incoming import Incoming, Work, incoming
from finetune.loading import Foundation, PropertyModel
from finetune.stream_parts import Embed, Predict, Task, compute_part, ids_digest, part_elsewhere, part_meta, write_text
from shards.errors import ConfigError, DataError
from shards.executors import compute

FORMAT = "matloom-stream-1"
# Parquet readers leave out what begins with an underscore
MANIFEST, SUMMARY, QUARANTINED = "_manifest.json", "_summary.json", "_quarantined.csv"
# by which torchrun, MPICH and Intel MPI, Open MPI and MVAPICH say how many processes they have started
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
ALONE = (
    "accelerate launch starts one process on CPUs, unless it is given an --mpirun_hostfile: this one computes all "
    "parts; torchrun --nproc_per_node N starts several"
)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """What a stream has written.

    Attributes
    ----------
    parts, computed : int
        Parts in all, and those that this call computed.
    rows : int
        Materials with a result.
    quarantined : int
        Materials without one; ``_quarantined.csv`` says why.
    """

    parts: int
    computed: int
    rows: int
    quarantined: int


def predict_stream(model: PropertyModel, source: Any, out: Path | str, **options: Any) -> Streamed:
    """Predict for all materials of a source; see `stream` for the options.

    Parameters
    ----------
    model : PropertyModel
        From `finetune.load`.
    source : Dataset, str, Path, sequence or iterable
        See `finetune.incoming.incoming`.
    out : Path or str
        Folder of the result: columns ``id`` and those of `Predictions.to_frame`.
    """
    if not isinstance(model, PropertyModel):
        raise ConfigError("a pretrained model without a head predicts nothing", do="matloom finetune, then predict")
    if model.predictor.head.partners == 2:
        raise ConfigError("the model predicts pairs of materials, not single ones", do="predict URI --pairs FILE")
    return stream(Predict(model), source, Path(out), **options)


def embed_stream(
    model: Foundation, source: Any, out: Path | str, *, modality: str | None = None, **options: Any
) -> Streamed:
    """Embed all materials of a source by one modality, the model's first by default; see `stream` for the options.

    The result has the columns ``id`` and ``embedding``, a list of D float32 of length 1.
    """
    if not isinstance(model, Foundation):
        raise ConfigError(
            "a fine-tuned predictor gives no embeddings", do="name the pretrained model that it came from"
        )
    name = modality or model.modalities[0]
    if name not in model.modalities:
        raise ConfigError(f"the model has no modality '{name}'", why=f"known: {', '.join(model.modalities)}")
    return stream(Embed(model, name), source, Path(out), **options)


def stream(
    task: Task,
    source: Any,
    out: Path,
    *,
    batch_size: int = 64,
    part_size: int = 4096,
    resume: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    report: Say = lambda line: None,
) -> Streamed:
    """Compute a task for all materials of a source.

    Under torchrun, ``accelerate launch`` (on CPUs with its ``--mpirun_hostfile``) or MPI every rank takes consecutive
    parts; of an iterator, whose end is not known, every so many-th part.

    Parameters
    ----------
    task : Predict or Embed
        What is computed.
    source : Dataset, str, Path, sequence or iterable
        See `finetune.incoming.incoming`.
    out : Path
        Folder of the result.
    batch_size : int
        Materials that go through the network together.
    part_size : int
        Materials a part: what is lost by a kill, and held in memory.
    resume : bool
        Go on with what is in the folder, which must come from the same model, data and sizes.
    workers : int
        Local processes that compute parts.
    scheduler : str, optional
        Address of a Dask scheduler whose workers compute parts; model, source and ``out`` are then on shared storage.
    report : callable
        Gets a line a part.

    Raises
    ------
    ConfigError
        Where the folder holds something else, or another process writes into it.
    """
    if batch_size < 1 or part_size < 1:
        raise ConfigError("batch_size and part_size are 1 at least")
    ranks, out = _Ranks.started(report), out.resolve()
    ranks.refuse_more(workers, scheduler)
    with ranks.first():
        found = incoming(source, task.specs, part_size)
    with _locked(out) if ranks.rank == 0 else nullcontext():
        if ranks.rank == 0:
            _begin(out, _identity(task, found, batch_size, part_size), resume)
        ranks.wait()
        todo, function = _Todo(found, out, ranks), _function(task, batch_size, workers, scheduler)
        computed = 0
        for line in compute(function, todo.missing(), workers=workers, scheduler=scheduler):
            report(line)
            computed += 1
        ranks.wait()
        return _finish(out, todo.seen, computed, write=ranks.rank == 0)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other processes from writing into the folder, which is made where it is not there."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError("another process writes into this folder", where=out, do="wait for it, or stop it") from None


def _identity(task: Task, found: Incoming, batch_size: int, part_size: int) -> dict[str, Any]:
    """Return everything that the bytes of the parts depend on."""
    modality = {"modality": task.modality} if isinstance(task, Embed) else {}
    sizes = {"batch_size": batch_size, "part_size": part_size, "parts": found.count}
    return {"format": FORMAT, "what": task.what, "model": task.model.seal, "data": found.digest, **modality, **sizes}


def _begin(out: Path, identity: dict[str, Any], resume: bool) -> None:
    """Make the folder's manifest, or check that it is that of an earlier call which this one goes on with."""
    manifest = out / MANIFEST
    held = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if held and not (resume and manifest.is_file()):
        do = "go on with --resume, or name another folder" if manifest.is_file() else "name another folder"
        raise ConfigError("the folder holds something already", where=out, why=min(held), do=do)
    if not held:
        write_text(manifest, json.dumps(identity, indent=1))
        return
    try:
        earlier = json.loads(manifest.read_text())
    except ValueError as error:
        raise DataError("the manifest of the folder is damaged", where=manifest, why=str(error)) from None
    for key, value in identity.items():
        if earlier.get(key) != value:
            raise ConfigError(
                f"the folder was begun with another '{key}'",
                where=manifest,
                why=f"{earlier.get(key)!r} there, {value!r} now",
                do="use what it was begun with, or another folder",
            )
    for partial_file in out.glob(".part-*.partial"):
        partial_file.unlink()


@dataclass
class _Ranks:
    """The processes that a launcher has started, or this one alone."""

    rank: int = 0
    world: int = 1
    accelerator: Any = None

    @classmethod
    def started(cls, report: Say) -> _Ranks:
        """Ask accelerate, which knows the variables of torchrun and of MPI launchers."""
        if not any(name in os.environ for name in WORLD_SIZES):
            # set where several processes were asked for
            if {"MASTER_ADDR", "ACCELERATE_USE_CPU"} <= os.environ.keys():
                report(ALONE)
            return cls()
        from accelerate import Accelerator
        from accelerate.utils.environment import get_cpu_distributed_information

        found = get_cpu_distributed_information()
        if found.world_size == 1:
            return cls()
        if found.world_size == found.local_world_size:
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
        if accelerator.num_processes != found.world_size:
            raise ConfigError(
                f"{found.world_size} processes were started, which do not find each other",
                why=f"accelerate knows of {accelerator.num_processes}",
                do="torchrun --nproc_per_node N -m launch.cli ...",
            )
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    def refuse_more(self, workers: int, scheduler: str | None) -> None:
        """Refuse further processes where a launcher has started several."""
        if self.world > 1 and (workers > 1 or scheduler):
            raise ConfigError("several ranks compute already", do="leave workers and scheduler out under a launcher")

    def wait(self) -> None:
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def first(self) -> AbstractContextManager[Any]:
        """Let the first rank go ahead: it may have to build or fetch what all read."""
        return nullcontext() if self.accelerator is None else self.accelerator.main_process_first()

    def owns(self, number: int, count: int | None) -> bool:
        if count is None:
            return number % self.world == self.rank
        return number * self.world // count == self.rank


@dataclass
class _Todo:
    """The parts of this rank that are not there yet; counts all parts as it goes."""

    found: Incoming
    out: Path
    ranks: _Ranks
    seen: int = 0

    def missing(self) -> Iterator[tuple[Work, Path]]:
        for number, work in enumerate(self.found.parts):
            self.seen = number + 1
            path = self.out / f"part-{number:06d}.parquet"
            if self.ranks.owns(number, self.found.count) and not self._there(path, work):
                yield work, path

    def _there(self, path: Path, work: Work) -> bool:
        if not path.exists():
            return False
        if not self.found.digest and part_meta(path)["ids"] != ids_digest([id for id, _ in work]):
            raise ConfigError(
                "the folder was begun with other materials",
                where=path,
                why="their ids are not those that come now",
                do="give the same materials in the same order, or another folder",
            )
        return True


def _function(task: Task, batch_size: int, workers: int, scheduler: str | None) -> Callable[[tuple[Work, Path]], str]:
    if workers <= 1 and scheduler is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = task.model.model if isinstance(task, Embed) else task.model.predictor
        network.to(device)
        return partial(compute_part, task, batch_size)
    modality = task.modality if isinstance(task, Embed) else None
    return partial(part_elsewhere, str(task.model.folder.resolve()), modality, batch_size, workers)


def _finish(out: Path, parts: int, computed: int, *, write: bool) -> Streamed:
    """Count rows and refused materials over all parts; the first rank writes them down."""
    rows = quarantined = 0
    with (out / QUARANTINED).open("w", newline="") if write else open(os.devnull, "w") as file:
        table = csv.writer(file)
        table.writerow(["id", "reason"])
        for number in range(parts):
            meta = part_meta(out / f"part-{number:06d}.parquet")
            table.writerows(meta["quarantined"])
            quarantined += len(meta["quarantined"])
            rows += meta["read"] - len(meta["quarantined"])
    streamed = Streamed(parts=parts, computed=computed, rows=rows, quarantined=quarantined)
    if write:
        write_text(out / SUMMARY, json.dumps(asdict(streamed), indent=1))
    return streamed
