"""Checkpoints of a run: sealed, published by one rename after every rank's part is on disk, and verified before use."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pretrain.agreement import on_first_rank, together
from pretrain.engine import Engine
from pretrain.export import contiguous, write_json
from pretrain.parts import Fitted, with_weights
from shards.errors import CheckpointError
from shards.sealed import publish, recover, staging, verify

ENGINE, STATE, FITTED, EXTRA = "engine", "state.json", "fitted.json", "extra.safetensors"
PREFIX = "step-"


class Checkpoints:
    """The checkpoints in one folder, ``step-00000100`` and so on.

    A crash at any moment leaves all published ones whole; what it leaves besides is hidden, and removed by the next
    `save`.

    Parameters
    ----------
    folder : Path
        Where they lie, on storage that all ranks see.
    keep : int
        How many of the newest are kept.
    keep_best : bool
        Keep the one with the highest score too.
    """

    def __init__(self, folder: Path, keep: int, *, keep_best: bool = True) -> None:
        self.folder, self.keep, self.keep_best = folder, keep, keep_best

    def save(
        self,
        engine: Engine,
        step: int,
        state: Mapping[str, Any],
        fitted: Fitted,
        *,
        extra: Mapping[str, Tensor] | None = None,
        score: float | None = None,
    ) -> Path:
        """Save the state after ``step`` steps; every rank calls it.

        Batches whose gradient still waits for the optimizer's step are not part of it: ``step`` in the checkpoint is
        then that of the optimizer's last step, and a run that resumes computes them again.

        Parameters
        ----------
        engine : Engine
            Its state is saved by all ranks.
        step : int
            Batches computed so far.
        state, fitted : mapping
            JSON values; those of the first rank are written.
        extra : mapping of str to Tensor, optional
            Further tensors, such as a moving average; those of the first rank are written.
        score : float, optional
            Of a validation of just these weights, the higher the better; by it the best one is known.

        Returns
        -------
        Path
            The published checkpoint.

        Raises
        ------
        CheckpointError
            On all ranks, where one could not write. Nothing of it is left, and all earlier checkpoints are.
        """
        step -= engine.pending
        target = self.folder / f"{PREFIX}{step:08d}"
        stage = staging(target)
        tables = {STATE: {"step": step, "world": engine.world, "score": score, **state}, FITTED: fitted}
        what, do = "the checkpoint cannot be written", "see to space and permissions, then continue with --resume"
        try:
            with together(what, where=self.folder, do=do):
                if engine.rank == 0:
                    self._clear(stage)
            engine.save(stage / ENGINE)
            with together(what, where=self.folder, do=do):
                if engine.rank == 0:
                    for name, table in tables.items():
                        write_json(stage / name, table)
                    safetensors.torch.save_file(contiguous(extra or {}), stage / EXTRA)
                    publish(target)
                    self._prune(target)
        except CheckpointError:
            # all wait for it: the first that leaves may take the others with it
            on_first_rank(lambda: shutil.rmtree(stage, ignore_errors=True))
            raise
        return target

    def steps(self) -> list[Path]:
        """Return the published checkpoints, oldest first."""
        for aside in self.folder.glob(f".{PREFIX}*.old"):
            # a crash while one was replaced by another of the same step
            recover(self.folder / aside.name[1 : -len(".old")])
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
    def read(folder: Path) -> tuple[dict[str, Any], Fitted]:
        """Return the state and the fitted values of a checkpoint that has been verified."""
        state = json.loads((folder / STATE).read_text())
        return state, with_weights(json.loads((folder / FITTED).read_text()))

    @staticmethod
    def extra(folder: Path) -> dict[str, Tensor]:
        """Return the further tensors of a checkpoint that has been verified."""
        return safetensors.torch.load_file(folder / EXTRA)

    def _prune(self, newest: Path) -> None:
        """Delete what need not be kept, once ``newest`` has been read back from the disk and is right."""
        published = self.steps()
        doomed = [folder for folder in published[: -self.keep] if folder != self._best(published)]
        if not doomed:
            return
        verify(newest, error=CheckpointError)
        for folder in doomed:
            # half a checkpoint must not bear the name of a whole one
            hidden = folder.with_name(f".{folder.name}.removed")
            os.rename(folder, hidden)
            shutil.rmtree(hidden)

    def _best(self, published: list[Path]) -> Path | None:
        scores = {folder: _score(folder) for folder in published} if self.keep_best else {}
        known = {folder: score for folder, score in scores.items() if score is not None and not math.isnan(score)}
        # the newest of equals
        return max(known, key=lambda folder: (known[folder], folder.name), default=None)

    def _clear(self, stage: Path) -> None:
        """Remove what crashes left and make ``stage``; an earlier checkpoint that was moved aside is put back first."""
        self.steps()
        for hidden in self.folder.glob(f".{PREFIX}*"):
            shutil.rmtree(hidden)
        stage.mkdir(parents=True)


def _score(folder: Path) -> float | None:
    """Return the validation score of a checkpoint; None also where it is damaged, so that it cannot be the best."""
    try:
        return json.loads((folder / STATE).read_text()).get("score")
    except (OSError, ValueError, AttributeError):
        return None
