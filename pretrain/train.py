"""The pretraining loop: setup, build, loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.checkpoint import Checkpoints
from pretrain.config import Recipe
from pretrain.engine import Engine, autocast_type, start_process_group
from pretrain.evaluate import Row, embed_all, mean_reciprocal_rank, retrieval
from pretrain.export import write_export, write_json
from pretrain.model import Fitted, MultimodalModel, check_modalities, fit_encoders
from pretrain.tracking import Tracker
from shards.augment import Augment
from shards.locate import existing, locate
from shards.manifest import MANIFEST
from shards.reader import Dataset
from shards.schema import Value
from shards.sealed import sha256
from shards.stream import BatchStream

BEST, METRICS = "best", "metrics.jsonl"
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
        self.checkpoints = Checkpoints(out / "checkpoints", recipe.checkpoint.keep)
        self.step, self.best = 0, -1.0
        folder = self.checkpoints.newest() if resume else None
        state, self.fitted = Checkpoints.read(folder, self.world) if folder else ({}, self._fit())
        torch.manual_seed(recipe.seed)
        autocast = autocast_type(recipe.optim, self.device)
        self.model = MultimodalModel(recipe, self.dataset.modalities, self.fitted, autocast).to(self.device)
        self.stream = self._stream("train", shuffle=True)
        self.validation = self._stream("val", shuffle=False)
        self.engine = Engine(
            self.model,
            recipe.optim,
            batch_size=recipe.data.batch_size,
            steps_per_epoch=self.stream.steps,
            seed=recipe.seed,
            settings={**recipe.deepspeed, **(settings or {})},
        )
        if folder:
            self.engine.load(folder / "engine")
            self.step, self.best = state["step"], state["best"]
            self.report(f"resumed from {folder}")

    def run(self) -> Path:
        """Train to the end and return the export of the best model by validation retrieval."""
        recipe, per_epoch = self.recipe, self.stream.steps
        self._start_metrics()
        with self._tracker() as tracker:
            for epoch in range(self.step // per_epoch, recipe.optim.epochs):
                for batch, waited in timed(self.stream.epoch(epoch, start=self.step % per_epoch)):
                    began = time.perf_counter()
                    values = self.engine.step(batch, self.step)
                    self.step += 1
                    seconds = time.perf_counter() - began + waited
                    values |= {"seconds/step": seconds, "seconds/data": waited}
                    self._log(tracker, values)
                    if self.step % recipe.checkpoint.every_steps == 0:
                        self._save()
                done = epoch + 1
                if done % recipe.evaluation.every_epochs == 0 or done == recipe.optim.epochs:
                    score = self._evaluate(tracker)
                    self.report(
                        f"epoch {done}/{recipe.optim.epochs}  step {self.step}  loss {values['loss']:.3f}  "
                        f"temperature {values.get('temperature', float('nan')):.3f}  val MRR {score:.3f}"
                    )
            self._save()
            self._register(tracker)
        return self.out / BEST

    def _open(self) -> Dataset:
        path = self.recipe.data.path
        folder = locate(path) if self.rank == 0 else None
        dist.barrier()
        dataset = Dataset(folder or existing(path))
        check_modalities(self.recipe, dataset.modalities)
        return Dataset(dataset.folder, list(self.recipe.modalities))

    def _fit(self) -> Fitted:
        positions = self.dataset.positions(self.recipe.data.split, "train")[:FIT_SAMPLES]

        def values(modality: str) -> Iterator[Value]:
            for sample in (self.dataset[int(position)] for position in positions):
                value = sample.value(modality)
                if value is not None:
                    yield value

        return fit_encoders(self.recipe, self.dataset.modalities, values)

    def _stream(self, part: str, *, shuffle: bool) -> BatchStream:
        augments = {name: config.augment for name, config in self.recipe.modalities.items() if config.augment != Augment()}
        return BatchStream(
            self.dataset,
            self.dataset.positions(self.recipe.data.split, part),
            batch_size=self.recipe.data.batch_size,
            seed=self.recipe.seed,
            rank=self.rank,
            world=self.world,
            shuffle=shuffle,
            augments=augments if shuffle else None,
        )

    def _tracker(self) -> Tracker:
        parameters = {**self.recipe.resolved(), "world": self.world, "data_samples": len(self.dataset)}
        return Tracker(self.recipe.tracking.experiment, self.recipe.name, parameters, enabled=self.rank == 0)

    def _start_metrics(self) -> None:
        """Drop the lines of steps that a resumed run will do again."""
        if self.rank != 0:
            return
        path = self.out / METRICS
        self.out.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() and self.step else []
        path.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= self.step))

    def _log(self, tracker: Tracker, values: Mapping[str, float]) -> None:
        if self.rank == 0:
            with (self.out / METRICS).open("a") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")
            tracker.metrics(values, self.step)

    def _save(self) -> None:
        self.checkpoints.save(self.engine, self.step, {"best": self.best, "name": self.recipe.name}, self.fitted)

    def _evaluate(self, tracker: Tracker) -> float:
        """Measure validation retrieval; export the model where it is the best so far."""
        z, present = embed_all(self.model, self.validation, self.device)
        rows = retrieval(z, present, complete_only=self.recipe.evaluation.complete_only)
        score = mean_reciprocal_rank(rows)
        values = {f"val/{row['query']}-{row['target']}/recall_at_{k}": float(row[f"recall_at_{k}"]) for row in rows for k in (1, 5, 10)}
        self._log(tracker, {**values, "val/mrr": score})
        if score > self.best:
            self.best = score
            if self.rank == 0:
                self._export(rows)
        dist.barrier()
        return score

    def _export(self, rows: list[Row]) -> None:
        write_export(
            self.out / BEST,
            self.model,
            self.recipe,
            self.fitted,
            step=self.step,
            data_name=self.dataset.manifest.name,
            data_sha256=sha256(self.dataset.folder / MANIFEST),
            validation=rows,
        )
        write_json(self.out / "validation.json", rows)

    def _register(self, tracker: Tracker) -> None:
        name = self.recipe.tracking.register_as
        if self.rank != 0 or name is None:
            return
        uri = tracker.register(
            self.out / BEST,
            name,
            score=self.best,
            parameters={"objective": self.recipe.objective["kind"], "step": self.step},
            tags={
                "data": self.dataset.manifest.name,
                "data_sha256": sha256(self.dataset.folder / MANIFEST),
                "modalities": ",".join(self.recipe.modalities),
                "metric": "validation mean reciprocal rank",
            },
        )
        self.report(f"registered {uri}")


def timed(batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Yield each batch with the seconds that were spent waiting for it."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began
