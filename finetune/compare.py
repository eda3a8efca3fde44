"""The honest table: the same target, split and seeds for pretrained, scratch, probe and trivial predictors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from finetune.config import FinetuneRecipe, RowConfig
from finetune.fit import Batches, Schedule, fit, predict
from finetune.freeze import freeze
from finetune.heads.base import HEADS
from finetune.metrics import SELECTION, better, evaluate, worst
from finetune.predictor import Predictor, PredictorInfo, build_featurizer, build_head, write_predictor
from finetune.registry import resolve
from finetune.report import parity_plot
from pretrain.export import Export, read_export, write_json
from pretrain.plots import write_csv
from pretrain.tracking import Tracker
from shards.batch import Batch
from shards.errors import ConfigError, DataError, suggest
from shards.locate import locate
from shards.manifest import MANIFEST
from shards.reader import Dataset
from shards.sealed import SEAL, sha256
from shards.stream import BatchStream

PARTS = ("train", "val", "test")
TRAINED = {"frozen", "full", "scratch"}
REPORT = "report"


@dataclass
class Result:
    """One row of the table.

    Attributes
    ----------
    row : RowConfig
        Strategy and modalities.
    validation, test : list of dict
        Metrics, one dict a seed.
    predictions, targets : ndarray
        Test predictions of the first seed and their targets, for the parity plot.
    """

    row: RowConfig
    validation: list[dict[str, float]] = field(default_factory=list)
    test: list[dict[str, float]] = field(default_factory=list)
    predictions: np.ndarray = field(default_factory=lambda: np.zeros(0))
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def summary(self) -> dict[str, Any]:
        """Return strategy, modalities, and mean and standard deviation over the seeds of every metric."""
        table: dict[str, Any] = {
            "strategy": self.row.strategy,
            "modalities": list(self.row.modalities),
            "seeds": len(self.test),
        }
        for part, runs in (("val", self.validation), ("test", self.test)):
            for metric in runs[0]:
                values = [run[metric] for run in runs]
                table[f"{part}_{metric}"] = fmean(values)
                table[f"{part}_{metric}_std"] = stdev(values) if len(values) > 1 else 0.0
        return table


class Comparison:
    """Fits every row of a recipe; `run` returns the table and registers the best predictor by validation.

    Parameters
    ----------
    recipe : FinetuneRecipe
        What to compare.
    out : Path
        Folder for the exported predictor.
    report : callable
        Gets a line a row.
    """

    def __init__(self, recipe: FinetuneRecipe, out: Path, *, report: Callable[[str], None] = print) -> None:
        self.recipe, self.out, self.report = recipe, out, report
        self.accelerator = Accelerator()
        folder = resolve(recipe.model)
        self.export: Export = read_export(folder)
        self.seal = sha256(folder / SEAL)
        self.dataset = Dataset(locate(recipe.data), list(self.export.specs))
        self._check_schema()
        self.head_options = recipe.head_options()
        self.positions = {part: self._labelled(part) for part in PARTS}
        targets = [self.dataset[int(i)].labels[recipe.target] for i in self.positions["train"]]
        self.train_targets = torch.tensor(targets, dtype=torch.float32)
        self._best: tuple[float, Predictor, RowConfig, dict[str, Any]] | None = None

    def run(self) -> list[Result]:
        """Fit and measure every row."""
        main = self.accelerator.is_main_process
        with Tracker(
            self.recipe.experiment, self.recipe.name, self.recipe.model_dump(mode="json"), enabled=main
        ) as tracker:
            results = [self._row(row, tracker) for row in self.recipe.rows]
            if main:
                self._save(results)
                tracker.files(self.out / REPORT, REPORT)
            if main and self._best is not None:
                self._register(tracker)
        return results

    def _save(self, results: list[Result]) -> None:
        """Write the table as JSON and CSV, and the parity plot of the row that is registered."""
        folder = self.out / REPORT
        folder.mkdir(parents=True, exist_ok=True)
        table = [result.summary() for result in results]
        write_json(folder / "table.json", {"target": self.recipe.target, "rows": table})
        write_csv(folder / "table.csv", [{**row, "modalities": "+".join(row["modalities"])} for row in table])
        for result in results:
            if result.row == self.best_row and self._task() == "regression":
                label = f"{result.row.strategy}, {'+'.join(result.row.modalities)}, test"
                parity_plot(folder, self.recipe.target, label, result.targets, result.predictions)

    @property
    def best_row(self) -> RowConfig | None:
        """The registered row: the best by validation among those that use pretrained encoders."""
        return self._best[2] if self._best else None

    def _row(self, row: RowConfig, tracker: Tracker) -> Result:
        result = Result(row)
        trainer = {"mean": self._mean, "probe": self._probe}.get(row.strategy, self._trained)
        for seed in self.recipe.seeds if row.strategy in TRAINED else self.recipe.seeds[:1]:
            validation, (predictions, targets) = trainer(row, seed)
            task = self._task()
            result.validation.append(validation)
            result.test.append(evaluate(task, predictions, targets))
            if not result.predictions.size:
                result.predictions, result.targets = predictions.numpy(), targets.numpy()
        summary = result.summary()
        name = f"{row.strategy}_{'_'.join(row.modalities)}"
        tracker.metrics({f"{name}/{k}": v for k, v in summary.items() if isinstance(v, float)}, 0)
        metric = SELECTION[self._task()]
        self.report(
            f"{self.recipe.target}  {row.strategy:8} {'+'.join(row.modalities):40} "
            f"test {metric} {summary[f'test_{metric}']:.4f} +- {summary[f'test_{metric}_std']:.4f}"
        )
        return result

    def _trained(self, row: RowConfig, seed: int) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        set_seed(seed)
        optim = self.recipe.optim
        featurizer = build_featurizer(self.export, row.modalities, pretrained=row.strategy != "scratch")
        predictor = Predictor(featurizer, build_head(self.head_options, featurizer.width))
        predictor.head.fit(self.train_targets)
        head_group = {"params": list(predictor.head.parameters()), "lr": optim.lr}
        if row.strategy == "frozen":
            freeze(predictor.featurizer)
            network: nn.Module = CachedHead(predictor.head)
            batches = {part: self._cached(predictor.featurizer, part, seed) for part in PARTS}
            groups, epochs = [head_group], optim.frozen_epochs
        else:
            network = predictor.to(self.accelerator.device)
            batches = {part: self._streamed(row.modalities, part, seed) for part in PARTS}
            encoder_lr = optim.lr if row.strategy == "scratch" else optim.encoder_lr
            groups = [head_group, {"params": list(predictor.featurizer.parameters()), "lr": encoder_lr}]
            epochs = optim.epochs
        schedule = Schedule(groups=groups, epochs=epochs, weight_decay=optim.weight_decay, grad_clip=optim.grad_clip)
        validation = fit(
            network, predictor.head, batches["train"], batches["val"], schedule=schedule, accelerator=self.accelerator
        )
        if row.strategy != "scratch":
            self._remember(validation, predictor, row)
        return validation, predict(network, predictor.head, batches["test"], self.accelerator)

    def _probe(self, row: RowConfig, seed: int) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        featurizer = build_featurizer(self.export, row.modalities, pretrained=True).eval()
        features = {part: self._features(featurizer, part) for part in PARTS}
        regression = self._task() == "regression"
        estimator = RidgeCV(np.logspace(-3, 5, 33)) if regression else LogisticRegressionCV(max_iter=2000)
        model = make_pipeline(StandardScaler(), estimator)
        model.fit(features["train"][0].numpy(), features["train"][1].numpy())

        def outcome(part: str) -> tuple[Tensor, Tensor]:
            x, y = features[part]
            predictions = model.predict(x.numpy()) if regression else model.predict_proba(x.numpy())[:, 1]
            return torch.from_numpy(np.asarray(predictions)).float(), y

        return evaluate(self._task(), *outcome("val")), outcome("test")

    def _mean(self, row: RowConfig, seed: int) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        def outcome(part: str) -> tuple[Tensor, Tensor]:
            y = torch.tensor([self.dataset[int(i)].labels[self.recipe.target] for i in self.positions[part]])
            return self.train_targets.mean().expand(len(y)).clone(), y.float()

        return evaluate(self._task(), *outcome("val")), outcome("test")

    def _streamed(self, modalities: Iterable[str], part: str, seed: int) -> Batches:
        dataset = Dataset(self.dataset.folder, list(modalities))
        stream = BatchStream(
            dataset,
            self.positions[part],
            batch_size=self.recipe.optim.batch_size,
            seed=seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            shuffle=part == "train",
            label_names=(self.recipe.target,),
        )

        def batches(epoch: int) -> Iterator[tuple[Batch, Tensor]]:
            for batch in stream.epoch(epoch):
                moved = batch.to(self.accelerator.device)
                yield moved, moved.labels[:, 0]

        return batches

    @torch.no_grad()
    def _features(self, featurizer: nn.Module, part: str) -> tuple[Tensor, Tensor]:
        """Encode one part once, on every rank."""
        stream = BatchStream(
            self.dataset, self.positions[part], batch_size=64, shuffle=False, label_names=(self.recipe.target,)
        )
        pairs = [(featurizer(batch), batch.labels[:, 0]) for batch in stream.epoch(0)]
        features, targets = (torch.cat(column) for column in zip(*pairs, strict=True))
        return features, targets

    def _cached(self, featurizer: nn.Module, part: str, seed: int) -> Batches:
        features, targets = (tensor.to(self.accelerator.device) for tensor in self._features(featurizer, part))
        rank, world, size = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.recipe.optim.batch_size,
        )

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            rows = np.arange(len(targets))
            if part == "train":
                rows = np.random.default_rng([seed, epoch]).permutation(len(targets))
            for start in range(0, len(rows), size):
                mine = rows[start : start + size][rank::world]
                yield features[mine], targets[mine]

        return batches

    def _remember(self, validation: dict[str, float], predictor: Predictor, row: RowConfig) -> None:
        metric = SELECTION[self._task()]
        best = self._best[0] if self._best else worst(metric)
        if better(metric, validation[metric], best):
            self._best = (validation[metric], predictor.cpu(), row, {f"val_{k}": v for k, v in validation.items()})

    def _register(self, tracker: Tracker) -> None:
        assert self._best is not None
        score, predictor, row, metrics = self._best
        recipe = self.recipe
        info = PredictorInfo(
            target=recipe.target,
            task=self._task(),
            modalities=row.modalities,
            head=self.head_options.model_dump(mode="json"),
            foundation=recipe.model,
            foundation_seal=self.seal,
            strategy=row.strategy,
            metrics=metrics,
        )
        folder = self.out / "predictor"
        write_predictor(folder, predictor, self.export, info)
        metric = SELECTION[info.task]
        uri = tracker.register(
            folder,
            recipe.register_as or recipe.name,
            score=-score if metric == "mae" else score,
            parameters={"strategy": row.strategy, "target": recipe.target, "foundation": recipe.model},
            tags={
                "data": self.dataset.manifest.name,
                "data_sha256": sha256(self.dataset.folder / MANIFEST),
                "modalities": ",".join(row.modalities),
                "metric": f"validation {metric}",
            },
        )
        self.report(f"registered {uri}")

    def _task(self) -> str:
        return HEADS.get(self.head_options.kind).task

    def _labelled(self, part: str) -> np.ndarray:
        target = self.recipe.target
        if target not in self.dataset.manifest.labels:
            raise ConfigError(
                f"the data set has no label '{target}'", why=suggest(target, self.dataset.manifest.labels)
            )
        positions = self.dataset.positions(self.recipe.split, part)
        known = [i for i in positions if target in self.dataset[int(i)].labels]
        if not known:
            raise DataError(f"no sample of part '{part}' has the label '{target}'", where=self.dataset.folder)
        return np.asarray(known)

    def _check_schema(self) -> None:
        """Refuse a data set whose features differ from what the model was trained on."""
        for name, spec in self.export.specs.items():
            difference = spec.difference(self.dataset.modalities[name])
            if difference:
                raise DataError(
                    "the data set's schema is not the model's",
                    where=self.dataset.folder,
                    why=difference,
                    do="build the shards with the feature parameters of the model's schema.json",
                )


class CachedHead(nn.Module):
    """A head over features that are already computed."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Return the head's raw outputs (B,)."""
        return self.head(features)
