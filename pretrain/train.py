"""The pretraining loop: setup, build, loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from pretrain.agreement import on_first_rank
from pretrain.build import build
from pretrain.checkpoint import ENGINE, Checkpoints
from pretrain.config import Recipe
from pretrain.display import Display
from pretrain.engine import start_process_group
from pretrain.evaluate import embed_all, mean_reciprocal_rank, retrieval, validation_values
from pretrain.export import write_json
from pretrain.feed import Feed
from pretrain.fitting import fit
from pretrain.guards import DivergenceError, Guards, Judgement, Verdict, culprits, finite_weights
from pretrain.meters import Meter
from pretrain.record import BEST, Recorder
from pretrain.setup import (
    identity,
    noise_scales,
    open_on_all_ranks,
    refuse_another_run,
    resumed_from,
)
from pretrain.signals import PREEMPTED, Interrupted, Preempted, Signals, preemption
from pretrain.tracking import REGISTERED
from pretrain.watchdog import Watchdog
from shards.batch import Batch
from shards.errors import CheckpointError


class Trainer:
    """Everything a run consists of; `run` is the loop.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    out : Path
        Folder for checkpoints, the best export and the metrics.
    resume : bool or "auto"
        Continue from the newest checkpoint that verifies; ``auto``: start where there has never been one.
    settings : mapping, optional
        DeepSpeed keys that win over the recipe's.
    report : callable
        Gets a line of progress now and then, on rank 0.
    signals : Signals, optional
        Says when to end early.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        resume: bool | Literal["auto"] = False,
        settings: Mapping[str, Any] | None = None,
        report: Callable[[str], None] = print,
        signals: Signals | None = None,
    ) -> None:
        self.recipe, self.out = recipe, out
        self.rank, self.world, self.device = start_process_group()
        self.report = report if self.rank == 0 else lambda line: None
        self.signals = signals or Signals()
        self.signals.attach(out, self.rank)
        self.watchdog = Watchdog(out, recipe.guards.hang_timeout_s, rank=self.rank, world=self.world)
        self.dataset = open_on_all_ranks(recipe)
        self.checkpoints = Checkpoints(
            out / "checkpoints", recipe.checkpoint.keep, keep_best=recipe.checkpoint.keep_best
        )
        folder = resumed_from(self.checkpoints, resume)
        state, self.fitted = Checkpoints.read(folder) if folder else ({}, fit(recipe, self.dataset))
        if folder:
            refuse_another_run(state["run"], identity(recipe, self.dataset), where=folder)
        self.noise_scales = noise_scales(recipe, self.dataset, state.get("deviations", {}))
        self.parts = build(
            recipe,
            self.dataset,
            self.fitted,
            self.noise_scales,
            settings=settings or {},
            resumed=folder is not None,
            device=self.device,
            report=self.report,
        )
        self.model, self.average, self.engine = self.parts.model, self.parts.average, self.parts.engine
        self.stream, self.total_steps = self.parts.training, self.parts.total_steps
        self.feed, self.validation = (
            Feed(stream, lambda: self.signals.requested_anywhere, self._poll)
            for stream in (self.parts.training, self.parts.validation)
        )
        self.guards = Guards(recipe.guards)
        every = recipe.logging.every_steps
        self.meter = Meter(every, self.device, recipe.logging.peak_tflops)
        self.display = Display(
            self.total_steps, recipe.optim.epochs, every=every, report=self.report, enabled=self.rank == 0
        )
        # `evaluated`: the last step whose evaluation is made; `saved`: the step of the checkpoint that is as we are
        self.step, self.best, self.evaluated, self.saved = 0, -1.0, 0, -1
        self.score: float | None = None
        self.owed = False
        if folder:
            self._load(folder, state)
            self.guards.restore(state.get("guards", {}))
            self.report(f"resumed from {folder}")
        self._note()

    def run(self) -> Path:
        """Train to the end and return the export of the best model by validation retrieval.

        Raises `Preempted` where it was asked to end early, and `DivergenceError` where the guards have seen enough.
        """
        if self.step == self.total_steps and on_first_rank((self.out / REGISTERED).exists):
            self.report("the run is finished and registered already")
            return self.out / BEST
        try:
            self._run()
        except (Preempted, DivergenceError):
            # a launcher that sees one rank end ends the others, even one that still closes its records
            dist.barrier()
            raise
        return self.out / BEST

    def _run(self) -> None:
        with Recorder(
            self.recipe, self.out, self.dataset, world=self.world, enabled=self.rank == 0, report=self.report
        ) as self.recorder, self.watchdog, self.display:  # fmt: skip
            self.recorder.start(self.step, evaluated=self.evaluated == self.step)
            self.display.start(self.step)
            try:
                self._poll()
                # one that a run which was ended early still owes
                self._evaluate_if_due()
                while self.step < self.total_steps:
                    self._train()
            except Interrupted:
                self._leave()
            self.watchdog.beat("closing the records", self.step)
            uri = self.recorder.finish(self.best)
        if uri:
            self.report(f"registered {uri}")

    def _train(self) -> None:
        """Train to the end, or until the run returns to an earlier step."""
        self.watchdog.beat("data", self.step + 1)
        for batch, waited in self.feed.batches(self.step, self.total_steps):
            if not self._advance(batch, waited):
                return
            self._evaluate_if_due()
            # after the evaluation, which a run that resumes here would otherwise make once more
            if self.owed or self.step % self.recipe.checkpoint.every_steps == 0 or self.step == self.total_steps:
                self._save()
                self.meter.pause()
                self._poll()
            self.watchdog.beat("data", self.step + 1)

    def _advance(self, batch: Batch | None, waited: float) -> bool:
        """Make one step; False where the run returns to an earlier one instead.

        A rank whose data do not come, while somebody asks the run to end, meets the others with an empty batch; and
        all throw the step away.
        """
        if self.step in self.guards.passed_over:
            # with what was accumulated before it: the optimizer's step of its group is not made
            self.engine.discard()
            self._poll()
            self.step += 1
            return True
        began = time.perf_counter()
        self.watchdog.beat("forward and backward", self.step + 1)
        flags = {"preempted": float(self.signals.requested), "stalled": float(batch is None)}
        batch = batch or self.feed.nothing()
        with self.meter.step(self.step, samples=len(batch.ids) * self.world, waited_s=waited):
            values = self.engine.compute(batch, self.step, flags)
            preempted, stalled = values.pop("preempted") > 0, values.pop("stalled") > 0
            if stalled:
                self.engine.discard()
                raise Interrupted
            norms = self.engine.gradient_norms() if self.meter.due(self.step) else {}
            judgement = self.guards.judge(self.step, values)
            self._obey(judgement, batch)
        self.step += 1
        self._note()
        if judgement.verdict is Verdict.ROLL_BACK:
            self._roll_back(judgement.reason)
            return False
        seconds = time.perf_counter() - began + waited
        values |= {**norms, **self.meter.values(), "seconds/step": seconds, "seconds/data": waited}
        self.recorder.metrics(self.step, {name: value for name, value in values.items() if math.isfinite(value)})
        self.display.step(self.step, self.stream.locate(self.step - 1)[0], values)
        if preempted:
            raise Interrupted
        return True

    def _obey(self, judgement: Judgement, batch: Batch) -> None:
        """Make the optimizer's step or throw the gradient away."""
        if judgement.reason:
            self.report(f"step {self.step + 1}: {judgement.reason} ({judgement.verdict.value})")
        if judgement.verdict is not Verdict.APPLY:
            self.engine.discard()
            if not judgement.finite:
                self.report(f"  {culprits(self.model, batch.to(self.device))}")
            return
        self.engine.apply()
        if self.average and not self.engine.pending:
            with self.engine.whole():
                self.average.update(self.model)

    def _roll_back(self, reason: str) -> None:
        """Return to the newest good checkpoint, or raise `DivergenceError` where there is none or it is no use."""
        self.guards.roll_back(reason)
        try:
            folder = on_first_rank(self.checkpoints.newest)
        except CheckpointError as error:
            raise DivergenceError(f"{reason}, before there was a checkpoint to return to", why=str(error)) from None
        state, _ = Checkpoints.read(folder)
        self._load(folder, state)
        self.guards.returned(state.get("guards", {}))
        self._note()
        self.recorder.rewind(self.step, evaluated=self.evaluated == self.step)
        self.report(f"returned to {folder}")
        self._evaluate_if_due()

    def _poll(self) -> None:
        """Leave the loop where any rank was asked to; every rank calls it."""
        if self.signals.agreed():
            raise Interrupted

    def _leave(self) -> None:
        """Save what is not saved yet, say so, and raise `Preempted`."""
        if self.saved != self.step - self.engine.pending:
            self._save()
        newest = next(reversed(self.checkpoints.steps()), None)
        if self.rank == 0:
            write_json(self.out / PREEMPTED, preemption(self.signals, step=self.saved, checkpoint=newest))
        raise Preempted(
            f"ended early after step {self.step} of {self.total_steps}, saved after step {self.saved}",
            where=newest,
            why=self.signals.explain(),
            do="the same command with --resume",
        )

    def _save(self) -> None:
        self.watchdog.beat("save", self.step)
        self.owed = not self.guards.healthy or not finite_weights(self.model)
        if self.owed:
            self.report(f"step {self.step}: no checkpoint before the weights are known to be good")
            return
        fixed = {"run": identity(self.recipe, self.dataset), "recipe": self.recipe.resolved()}
        self.checkpoints.save(
            self.engine,
            self.step,
            {**fixed, "deviations": self.noise_scales, **self.noted},
            self.fitted,
            extra=self.average.state_dict() if self.average else None,
            score=self.score if self.evaluated == self.step else None,
        )
        self.saved = self.step - self.engine.pending

    def _load(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.engine.load(folder / ENGINE)
        if self.average:
            self.average.load_state_dict(Checkpoints.extra(folder))
        self.step = self.saved = state["step"]
        self.best, self.evaluated = state["best"], state.get("evaluated", state["step"])

    def _note(self) -> None:
        """Take down what a checkpoint says of the loop, as of the optimizer's last step, which is what it holds."""
        if not self.engine.pending:
            self.noted = {"best": self.best, "evaluated": self.evaluated, "guards": self.guards.state()}

    def _evaluate_if_due(self) -> None:
        """Measure validation retrieval; export the model where it is the best so far."""
        epoch, rest = self.stream.locate(self.step)
        due = self.step == self.total_steps or (rest == 0 and epoch % self.recipe.evaluation.every_epochs == 0)
        if not due or self.evaluated == self.step:
            return
        self.watchdog.beat("evaluation", self.step)
        model = self.average.module if self.average else self.model
        with self.engine.whole():
            z, present = embed_all(model, self.validation, self.device)
            rows = retrieval(z, present, complete_only=self.recipe.evaluation.complete_only)
            self.score = mean_reciprocal_rank(rows)
            self.recorder.metrics(self.step, {**validation_values(z, present, rows), "val/mrr": self.score})
            self.display.values({"val/mrr": self.score})
            if self.score > self.best:
                self.best = self.score
                self.recorder.export(model, self.fitted, self.step, rows)
        dist.barrier()
        self.report(f"step {self.step}: validation MRR {self.score:.3f}")
        self.meter.pause()
        self.evaluated = self.step
        self._note()
        self._poll()
