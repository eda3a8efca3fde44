"""Checkpoints of a run: sealed, published by one rename after every rank's part is written, and verified before use."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pretrain.engine import Engine
from pretrain.export import write_json
from pretrain.parts import Fitted, with_weights
from shards.errors import CheckpointError
from shards.sealed import publish, staging, verify

ENGINE, STATE, FITTED = "engine", "state.json", "fitted.json"
PREFIX = "step-"


class Checkpoints:
    """The checkpoints in one folder, ``step-00000100`` and so on.

    Parameters
    ----------
    folder : Path
        Where they lie, on storage that all ranks see.
    keep : int
        How many of the newest are kept; an older one goes only after its successor is published.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, engine: Engine, step: int, state: Mapping[str, Any], fitted: Fitted) -> Path:
        """Save the state after ``step`` steps; every rank calls it."""
        target = self.folder / f"{PREFIX}{step:08d}"
        stage = staging(target)
        if engine.rank == 0:
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True)
        dist.barrier()
        engine.save(stage / ENGINE)
        if engine.rank == 0:
            write_json(stage / STATE, {"step": step, "world": engine.world, **state})
            write_json(stage / FITTED, fitted)
            publish(target)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()
        return target

    def steps(self) -> list[Path]:
        """Return the published checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{PREFIX}*"))

    def newest(self) -> Path:
        """Return the newest checkpoint that verifies, warning of every newer one that is damaged.

        Raises
        ------
        CheckpointError
            Where there is none: a run that was asked to resume never starts afresh.
        """
        for folder in reversed(self.steps()):
            try:
                verify(folder, error=CheckpointError)
            except CheckpointError as error:
                warnings.warn(f"a damaged checkpoint is passed over: {error}", stacklevel=2)
                continue
            return folder
        raise CheckpointError(
            "there is no checkpoint to resume from",
            where=self.folder,
            do="start without --resume, or name another --out",
        )

    @staticmethod
    def read(folder: Path, world: int) -> tuple[dict[str, Any], Fitted]:
        """Return the state and the fitted values of a checkpoint that has been verified."""
        state = json.loads((folder / STATE).read_text())
        if state["world"] != world:
            raise CheckpointError(
                f"the checkpoint is of {state['world']} ranks, this run has {world}",
                where=folder,
                do=f"resume with --num_accelerators {state['world']}",
            )
        return state, with_weights(json.loads((folder / FITTED).read_text()))
