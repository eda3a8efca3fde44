"""The pretraining loop: setup, build, loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.checkpoint import ENGINE, Checkpoints
from pretrain.config import Recipe
from pretrain.data import as_evaluated, open_data
from pretrain.engine import Engine, start_process_group
from pretrain.evaluate import KS, embed_all, mean_reciprocal_rank, retrieval
from pretrain.model import MultimodalModel
from pretrain.optimizer import autocast_type
from pretrain.parts import Fitted, check_modalities, fit_encoders
from pretrain.record import BEST, Recorder
from pretrain.tracking import REGISTERED
from shards.augment import Augmenter
from shards.errors import CheckpointError, DataError
from shards.locate import existing, locate
from shards.mixture import Mixture
from shards.orders.base import Order
from shards.orders.sequential import Sequential
from shards.reader import Dataset
from shards.schema import Value
from shards.statistics import standard_deviations
from shards.stream import BatchStream

FIT_SAMPLES = 20_000


class Trainer:
    """Everything a run consists of; `run` is the loop.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    out : Path
        Folder for checkpoints, the best export and the metrics.
    resume : bool
        Continue from the newest checkpoint that verifies.
    settings : mapping, optional
        DeepSpeed keys that win over the recipe's.
    report : callable
        Gets a line of progress now and then, on rank 0.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self.recipe, self.out = recipe, out
        self.rank, self.world, self.device = start_process_group()
        self.report = report if self.rank == 0 else lambda line: None
        self.dataset = self._open()
        self.as_evaluated = as_evaluated(recipe, self.dataset.modalities)
        self.checkpoints = Checkpoints(out / "checkpoints", recipe.checkpoint.keep)
        self.step, self.best = 0, -1.0
        if not resume:
            self._refuse_earlier_run()
        folder = self._newest() if resume else None
        state, self.fitted = Checkpoints.read(folder, self.world) if folder else ({}, self._fit())
        self._check_same_run(folder, state)
        self.deviations = self._deviations(state.get("deviations", {}))
        torch.manual_seed(recipe.seed)
        autocast = autocast_type(recipe.optim, self.device)
        self.model = MultimodalModel(recipe, self.dataset.modalities, self.fitted, autocast).to(self.device)
        self.stream = self._stream("train", recipe.data.training_order(), self._augmenter())
        self.validation = self._stream("val", Sequential(), self.as_evaluated)
        self.total_steps = self.stream.total(recipe.optim.epochs)
        if self.stream.larger_than_budget:
            self.report(f"{self.stream.larger_than_budget} samples exceed the budget, each will be a batch of its own")
        self._check_validation()
        self.engine = Engine(
            self.model,
            recipe.optim,
            batch_size=recipe.data.batch_size,
            warmup_steps=self.stream.total(recipe.optim.warmup_epochs),
            total_steps=self.total_steps,
            seed=recipe.seed,
            settings={**recipe.deepspeed, **(settings or {})},
        )
        if folder:
            self.engine.load(folder / ENGINE)
            self.step, self.best = state["step"], state["best"]
            self.report(f"resumed from {folder}")

    def run(self) -> Path:
        """Train to the end and return the export of the best model by validation retrieval."""
        epochs = self.recipe.optim.epochs
        if self.step == self.total_steps and (self.out / REGISTERED).exists():
            self.report("the run is finished and registered already")
            return self.out / BEST
        with Recorder(self.recipe, self.out, self.dataset, world=self.world, enabled=self.rank == 0) as recorder:
            recorder.start(self.step)
            first, start = self.stream.locate(self.step)
            for epoch in range(first, epochs):
                for batch, waited in timed(self.stream.epoch(epoch, start=start if epoch == first else 0)):
                    began = time.perf_counter()
                    values = self.engine.compute(batch, self.step)
                    self.engine.apply()
                    self.step += 1
                    seconds = time.perf_counter() - began + waited
                    recorder.metrics(self.step, {**values, "seconds/step": seconds, "seconds/data": waited})
                    if self._evaluation_due():
                        score = self._evaluate(recorder)
                        self.report(
                            f"epoch {epoch + 1}/{epochs}  step {self.step}  loss {values['loss']:.3f}  "
                            f"temperature {values.get('temperature', float('nan')):.3f}  val MRR {score:.3f}"
                        )
                    # after the evaluation, which a run that resumes here would otherwise never make
                    if self.step % self.recipe.checkpoint.every_steps == 0 or self.step == self.total_steps:
                        self._save()
            uri = recorder.finish(self.best)
        if uri:
            self.report(f"registered {uri}")
        return self.out / BEST

    def _newest(self) -> Path:
        """Return the checkpoint that the first rank chooses: each on its own might choose another."""
        chosen: list[Any] = [None]
        if self.rank == 0:
            try:
                chosen = [self.checkpoints.newest()]
            except CheckpointError as error:
                chosen = [error]
        dist.broadcast_object_list(chosen)
        if isinstance(chosen[0], CheckpointError):
            raise chosen[0]
        return chosen[0]

    def _evaluation_due(self) -> bool:
        if self.step == self.total_steps:
            return True
        epoch, rest = self.stream.locate(self.step)
        return rest == 0 and epoch % self.recipe.evaluation.every_epochs == 0

    def _open(self) -> Dataset | Mixture:
        """Open the data; what is not there yet is made by the first rank, while the others wait."""
        names = list(self.recipe.modalities)
        dataset = open_data(self.recipe.data, names, locate) if self.rank == 0 else None
        dist.barrier()
        if dataset is None:
            dataset = open_data(self.recipe.data, names, existing)
        check_modalities(self.recipe, dataset.modalities)
        return dataset.select(names)

    def _fit(self) -> Fitted:
        positions = self.dataset.positions(self.recipe.data.split, "train")
        # evenly spread, so that every data set of a mix is looked at
        positions = positions[:: -(-len(positions) // FIT_SAMPLES)]

        def values(modality: str) -> Iterator[Value]:
            alone = self.dataset.select([modality])
            for position in positions:
                value = alone[int(position)].value(modality)
                if value is not None:
                    yield value

        return fit_encoders(self.recipe, self.dataset.modalities, values)

    def _deviations(self, known: dict[str, Any]) -> dict[str, Any]:
        """Return by what noise is measured: as the checkpoint has it, or measured by the first rank for all."""
        noisy = {name for name, config in self.recipe.modalities.items() if config.augment.gaussian_noise}
        shared: list[Any] = [None]
        if self.rank == 0:
            positions = self.dataset.positions(self.recipe.data.split, "train")
            shared = [dict(known)]
            for name in sorted(noisy - known.keys()):
                fields = standard_deviations(self.dataset, positions, name)
                shared[0][name] = {field: values.tolist() for field, values in fields.items()}
        dist.broadcast_object_list(shared)
        return shared[0]

    def _augmenter(self) -> Augmenter:
        anchor = getattr(self.recipe.objective_options(), "anchor", None)
        return Augmenter(
            self.dataset.modalities,
            {name: config.augment for name, config in self.recipe.modalities.items()},
            seed=self.recipe.seed,
            scales=self.deviations,
            keep=[anchor] if anchor in self.recipe.modalities else [],
        )

    def _stream(self, part: str, order: Order, augmenter: Augmenter) -> BatchStream:
        return BatchStream(
            self.dataset,
            self.dataset.positions(self.recipe.data.split, part),
            batch_size=self.recipe.data.batch_size,
            seed=self.recipe.seed,
            rank=self.rank,
            world=self.world,
            order=order,
            budget=self.recipe.data.budget,
            augmenter=augmenter,
            views=self.model.views if part == "train" else 1,
            workers=self.recipe.data.workers,
        )

    def _save(self) -> None:
        state = {
            "best": self.best,
            "run": self._identity(),
            "recipe": self.recipe.resolved(),
            "deviations": self.deviations,
        }
        self.checkpoints.save(self.engine, self.step, state, self.fitted)

    def _identity(self) -> dict[str, Any]:
        """What a step number means: a run that resumed with another of these would repeat or skip samples."""
        data = self.recipe.data
        return {
            "data_sha256": self.dataset.sha256,
            "split": data.split,
            "batch_size": data.batch_size,
            "budget": data.budget.model_dump() if data.budget else None,
            "order": data.training_order().model_dump(mode="json"),
            "mix": [[entry.name, entry.weight] for entry in data.mix],
            "seed": self.recipe.seed,
            "modalities": list(self.recipe.modalities),
        }

    def _check_same_run(self, folder: Path | None, state: Mapping[str, Any]) -> None:
        for name, value in self._identity().items():
            if folder and state["run"].get(name) != value:
                raise CheckpointError(
                    f"the checkpoint was made with another {name}",
                    where=folder,
                    why=f"{state['run'].get(name)}, now {value}",
                    do="resume with the recipe and the data of the first start, or start anew with another --out",
                )

    def _refuse_earlier_run(self) -> None:
        """Refuse to mix a new run with an earlier one's checkpoints, which ``--resume`` would take for its own."""
        if self.checkpoints.steps():
            raise CheckpointError(
                "the folder holds the checkpoints of an earlier run",
                where=self.checkpoints.folder,
                do="continue it with --resume, or name another --out",
            )

    def _check_validation(self) -> None:
        """Refuse a validation part on which nothing can be retrieved, before any step is made."""
        needed = len(self.recipe.modalities) if self.recipe.evaluation.complete_only else 2
        usable = 0
        for position in self.validation.positions:
            usable += len(self.dataset[int(position)].modalities) >= needed
            if usable == 2:
                return
        raise DataError(
            f"the validation part has {usable} samples with {needed} of the modalities, retrieval needs 2",
            where=self.dataset.location,
            do="--set evaluation.complete_only=false, or another split",
        )

    def _evaluate(self, recorder: Recorder) -> float:
        """Measure validation retrieval; export the model where it is the best so far."""
        z, present = embed_all(self.model, self.validation, self.device)
        rows = retrieval(z, present, complete_only=self.recipe.evaluation.complete_only)
        score = mean_reciprocal_rank(rows)
        recalls = {
            f"val/{row['query']}-{row['target']}/recall_at_{k}": float(row[f"recall_at_{k}"])
            for row in rows
            for k in KS
        }
        recorder.metrics(self.step, {**recalls, "val/mrr": score})
        if score > self.best:
            self.best = score
            recorder.export(self.model, self.fitted, self.step, rows)
        dist.barrier()
        return score


def timed(batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Yield each batch with the seconds that were spent waiting for it."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began
