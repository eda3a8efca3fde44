"""Engine checkpoints of another number of ranks, or another ZeRO stage: through DeepSpeed's universal format.

A checkpoint of ZeRO holds each rank's partition. The universal format holds one file a parameter and optimizer state,
which any number of ranks can cut anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pretrain.agreement import on_first_rank
from shards.errors import CheckpointError

TAG, ORIGIN = "engine", "origin.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What wrote an engine's checkpoint: the number of ranks and the ZeRO stage."""

    world: int
    stage: int

    def write(self, folder: Path) -> None:
        """Write it into the checkpoint."""
        (folder / ORIGIN).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Origin:
        """Read it from a checkpoint, or raise `CheckpointError`."""
        try:
            return cls(**json.loads((folder / ORIGIN).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError("this is no engine's checkpoint", where=folder, why=str(error)) from None

    def fits(self, other: Origin, folder: Path) -> bool:
        """Say whether ``other`` can load it as it is; raise `CheckpointError` where it cannot even be converted."""
        if self == other or self.stage == other.stage == 0:
            return True
        if (self.stage == 0) != (other.stage == 0) or (self.stage == 3) != (other.stage == 3):
            raise CheckpointError(
                f"the checkpoint is of ZeRO stage {self.stage}, this run has {other.stage}",
                where=folder,
                why="states go from stage 1 to 2 and back, not from or to 0 and 3",
                do=f"resume with zero_optimization.stage = {self.stage}",
            )
        return False


@contextmanager
def universal(folder: Path, convert: Callable[[Namespace], Any]) -> Iterator[Path]:
    """Convert an engine's checkpoint on the first rank; yields a folder with the copy, which is deleted afterwards.

    Parameters
    ----------
    folder : Path
        Folder of the engine's state in a published checkpoint, on storage that all ranks see. The copy is made
        beside the checkpoint, and needs as much space.
    convert : callable
        ``main`` of ``deepspeed.checkpoint.ds_to_universal``.
    """
    copy = folder.parent.with_name(f".{folder.parent.name}.universal")
    try:
        on_first_rank(lambda: _convert(folder, copy, convert))
        yield copy
        dist.barrier()
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(copy, ignore_errors=True)


def _convert(folder: Path, copy: Path, convert: Callable[[Namespace], Any]) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    arguments = Namespace(
        input_folder=str(folder / TAG),
        output_folder=str(copy / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    chatter = io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            convert(arguments)
    except Exception as error:
        raise CheckpointError(
            "the checkpoint cannot be converted for another number of ranks",
            where=folder,
            why=f"{type(error).__name__}: {error}",
            do="resume with as many ranks as it was written by",
        ) from None
