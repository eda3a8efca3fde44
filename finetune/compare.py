"""The honest table: the same target, split and seeds for pretrained, scratch, probe and trivial predictors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.base import clone
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from finetune.config import FinetuneRecipe, RowConfig
from finetune.data import PARTS, TargetData, check_schema
from finetune.fit import Schedule, fit, predict
from finetune.freeze import freeze
from finetune.heads.base import HEADS
from finetune.metrics import LOWER_IS_BETTER, SELECTION, better, evaluate, worst
from finetune.predictor import Predictor, PredictorInfo, build_featurizer, build_head, write_predictor
from finetune.registry import resolve
from finetune.report import parity_plot
from pretrain.data import as_evaluated
from pretrain.export import Export, read_export, write_json
from pretrain.plots import write_csv
from pretrain.tracking import Tracker
from shards.errors import ConfigError
from shards.locate import locate
from shards.reader import Dataset
from shards.sealed import SEAL, sha256

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
        Folder for the exported predictor and the report.
    report : callable
        Gets a line a row, on the main process.
    """

    def __init__(self, recipe: FinetuneRecipe, out: Path, *, report: Callable[[str], None] = print) -> None:
        self.recipe, self.out = recipe, out
        # without this, accelerate takes the ranks of a CPU launch for strangers
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.report = report if self.accelerator.is_main_process else lambda line: None
        folder = resolve(recipe.model)
        self.export: Export = read_export(folder)
        self.seal = sha256(folder / SEAL)
        self.head_options = recipe.head_options()
        self.task = HEADS.get(self.head_options.kind).task
        modalities = list(dict.fromkeys(name for row in recipe.rows for name in row.modalities))
        with self.accelerator.main_process_first():
            shards, *overlays = map(locate, (recipe.data, *recipe.overlays))
        self.dataset = Dataset(shards, overlays=overlays)
        check_schema(self.export.specs, self.dataset, modalities)
        self._check_split()
        self.data = TargetData(
            self.dataset,
            recipe.split,
            recipe.targets,
            recipe.optim.batch_size,
            self.accelerator,
            as_evaluated=as_evaluated(self.export.recipe, self.export.specs),
        )
        known = self.data.targets["train"]
        if self.task == "classification" and not set(known[~known.isnan()].tolist()) <= {0.0, 1.0}:
            raise ConfigError(
                f"'{', '.join(recipe.targets)}' is no class: its values are not 0 and 1", do="head.kind=regression"
            )
        self._best: tuple[float, Predictor, RowConfig, dict[str, Any]] | None = None

    @property
    def best_row(self) -> RowConfig | None:
        """The registered row: the best by validation among those that use pretrained encoders."""
        return self._best[2] if self._best else None

    def run(self) -> list[Result]:
        """Fit and measure every row."""
        main = self.accelerator.is_main_process
        parameters = self.recipe.model_dump(mode="json")
        with Tracker(
            self.out, self.recipe.experiment, self.recipe.name, parameters, enabled=main, report=self.report
        ) as tracker:
            results = [self._row(row, tracker) for row in self.recipe.rows]
            if main:
                self._save(results)
                tracker.files(self.out / REPORT, REPORT)
            if main and self._best is not None:
                self._register(tracker)
        return results

    def _row(self, row: RowConfig, tracker: Tracker) -> Result:
        result = Result(row)
        trainer = {"mean": self._mean, "probe": self._probe}.get(row.strategy, self._trained)
        for seed in self.recipe.seeds if row.strategy in TRAINED else self.recipe.seeds[:1]:
            validation, (predictions, targets) = trainer(row, seed)
            result.validation.append(validation)
            result.test.append(evaluate(self.task, predictions, targets))
            if not result.predictions.size:
                result.predictions, result.targets = predictions.numpy(), targets.numpy()
        summary = result.summary()
        name = "_".join([row.strategy, *row.modalities])
        tracker.metrics({f"{name}/{k}": v for k, v in summary.items() if isinstance(v, float)}, 0)
        metric = SELECTION[self.task]
        self.report(
            f"{'+'.join(self.recipe.targets)}  {row.strategy:8} {'+'.join(row.modalities):40} "
            f"test {metric} {summary[f'test_{metric}']:.4f} +- {summary[f'test_{metric}_std']:.4f}"
        )
        return result

    def _trained(self, row: RowConfig, seed: int) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        set_seed(seed)
        optim = self.recipe.optim
        featurizer = build_featurizer(self.export, row.modalities, pretrained=row.strategy != "scratch")
        predictor = Predictor(featurizer, build_head(self.head_options, featurizer.width, self.recipe.targets))
        predictor.head.fit(self.data.targets["train"])
        predictor.to(self.accelerator.device)
        groups: list[dict[str, object]] = [{"params": list(predictor.head.parameters()), "lr": optim.lr}]
        if row.strategy == "frozen":
            vectors = self.data.vectors(freeze(predictor.featurizer), row.modalities)
            network: nn.Module = CachedHead(predictor.head)
            batches = {part: self.data.cached(vectors, part, seed) for part in PARTS}
        else:
            network = predictor
            batches = {part: self.data.streamed(row.modalities, part, seed) for part in PARTS}
            encoder_lr = optim.lr if row.strategy == "scratch" else optim.encoder_lr
            groups.append({"params": list(predictor.featurizer.parameters()), "lr": encoder_lr})
        epochs = optim.frozen_epochs if row.strategy == "frozen" else optim.epochs
        schedule = Schedule(groups=groups, epochs=epochs, weight_decay=optim.weight_decay, grad_clip=optim.grad_clip)
        validation = fit(
            network, predictor.head, batches["train"], batches["val"], schedule=schedule, accelerator=self.accelerator
        )
        test = predict(network, predictor.head, batches["test"], self.accelerator)
        if row.strategy != "scratch":
            self._remember(validation, predictor, row)
        return validation, test

    def _probe(self, row: RowConfig, seed: int) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        featurizer = freeze(build_featurizer(self.export, row.modalities, pretrained=True))
        features = {part: rows.cpu().numpy() for part, rows in self.data.vectors(featurizer, row.modalities).items()}
        regression = self.task == "regression"
        estimator = RidgeCV(np.logspace(-3, 5, 33)) if regression else LogisticRegressionCV(max_iter=2000)
        models = []
        for values in self.data.targets["train"].numpy().T:
            known = ~np.isnan(values)
            models.append(
                make_pipeline(StandardScaler(), clone(estimator)).fit(features["train"][known], values[known])
            )

        def outcome(part: str) -> tuple[Tensor, Tensor]:
            x = features[part]
            columns = [model.predict(x) if regression else model.predict_proba(x)[:, 1] for model in models]
            return torch.from_numpy(np.stack(columns, axis=1)).float(), self.data.targets[part]

        return evaluate(self.task, *outcome("val")), outcome("test")

    def _mean(self, row: RowConfig, seed: int) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        mean = self.data.targets["train"].nanmean(dim=0)

        def outcome(part: str) -> tuple[Tensor, Tensor]:
            return mean.expand_as(self.data.targets[part]).clone(), self.data.targets[part]

        return evaluate(self.task, *outcome("val")), outcome("test")

    def _remember(self, validation: dict[str, float], predictor: Predictor, row: RowConfig) -> None:
        metric = SELECTION[self.task]
        best = self._best[0] if self._best else worst(metric)
        if better(metric, validation[metric], best):
            metrics = {f"val_{name}": value for name, value in validation.items()}
            self._best = (validation[metric], copy.deepcopy(predictor).cpu(), row, metrics)

    def _save(self, results: list[Result]) -> None:
        """Write the table as JSON and CSV, and the parity plot of the row that is registered."""
        folder = self.out / REPORT
        folder.mkdir(parents=True, exist_ok=True)
        table = [result.summary() for result in results]
        write_json(folder / "table.json", {"target": "+".join(self.recipe.targets), "rows": table})
        write_csv(folder / "table.csv", [{**row, "modalities": "+".join(row["modalities"])} for row in table])
        for result in results:
            if result.row == self.best_row and self.task == "regression":
                label = f"{result.row.strategy}, {'+'.join(result.row.modalities)}, test"
                for i, name in enumerate(self.recipe.targets):
                    parity_plot(folder, name, label, result.targets[:, i], result.predictions[:, i])

    def _register(self, tracker: Tracker) -> None:
        assert self._best is not None
        score, predictor, row, metrics = self._best
        recipe = self.recipe
        info = PredictorInfo(
            targets=recipe.targets,
            task=self.task,
            modalities=row.modalities,
            head=self.head_options.model_dump(mode="json"),
            foundation=recipe.model,
            foundation_seal=self.seal,
            strategy=row.strategy,
            metrics=metrics,
        )
        folder = self.out / "predictor"
        write_predictor(folder, predictor, self.export, info)
        metric = SELECTION[self.task]
        uri = tracker.register(
            folder,
            recipe.register_as or recipe.name,
            score=-score if metric in LOWER_IS_BETTER else score,
            parameters={"strategy": row.strategy, "modalities": ",".join(row.modalities), "foundation": recipe.model},
            contest={
                "data": self.dataset.manifest.name,
                "data_sha256": self.dataset.sha256,
                "split": recipe.split,
                "metric": f"validation {metric} of {'+'.join(recipe.targets)}",
            },
        )
        if uri:
            self.report(f"registered {uri}")

    def _check_split(self) -> None:
        """Refuse to test on what the model was pretrained on: the same data (or part of a mix) under another split."""
        seen = set(self.export.metrics["data_contents"])
        if seen & set(self.dataset.contents) and self.export.recipe.data.split != self.recipe.split:
            raise ConfigError(
                f"the model was pretrained on split '{self.export.recipe.data.split}' of this data set",
                where="split",
                why=f"the test part of '{self.recipe.split}' holds materials that it has seen",
                do=f"--set split={self.export.recipe.data.split}",
            )


class CachedHead(nn.Module):
    """A head over features that are already computed."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Return the head's raw outputs (B, ...)."""
        return self.head(features)
