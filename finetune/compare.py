"""The honest table: the same target, split and seeds for pretrained, scratch, probe and trivial predictors."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, KwargsHandler

from finetune.adapt.base import Adaptation
from finetune.calibration import Calibration, Task
from finetune.config import FinetuneRecipe, RowConfig
from finetune.data import TargetData, check_schema
from finetune.head_rows import check_head
from finetune.heads.base import HEADS
from finetune.metrics import LOWER_IS_BETTER, SELECTION, better, evaluate, worst
from finetune.pair_data import PairData
from finetune.prediction import Prediction
from finetune.predictor import Predictor, PredictorInfo, write_predictor
from finetune.registry import resolve
from finetune.report import parity_plot
from finetune.rows import RowFitter
from pretrain.data import as_evaluated
from pretrain.export import Export, read_export, write_json
from pretrain.plots import write_csv
from pretrain.tracking import Tracker
from shards.errors import ConfigError
from shards.locate import locate
from shards.reader import Dataset
from shards.sealed import SEAL, sha256

DETERMINISTIC = {"mean", "linear_probe", "knn"}
REPORT = "report"


@dataclass(frozen=True)
class Best:
    """The predictor that is registered: its score on the validation part, and how it was made."""

    score: float
    predictor: Predictor
    row: RowConfig
    adaptation: Adaptation
    metrics: dict[str, Any]


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
            "strategy": self.row.label,
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
        self.accelerator = start_accelerator(recipe)
        self.report = report if self.accelerator.is_main_process else lambda line: None
        folder = resolve(recipe.model)
        self.export: Export = read_export(folder)
        self.seal = sha256(folder / SEAL)
        self.head_options = recipe.head_options()
        self.task = HEADS.get(self.head_options.kind).task
        if recipe.deltas and self.task != "regression":
            raise ConfigError("classes have no differences", where="delta", do="head.kind=regression, or no delta")
        for row in recipe.rows:
            row.check()
        check_head(recipe)
        modalities = list(dict.fromkeys(name for row in recipe.rows for name in row.modalities))
        with self.accelerator.main_process_first():
            shards, *overlays = map(locate, (recipe.data, *recipe.overlays))
        self.dataset = Dataset(shards, overlays=overlays)
        check_schema(self.export.specs, self.dataset, modalities)
        self._check_split()
        of_rows = TargetData if recipe.pairs is None else partial(PairData, pairs=recipe.pairs)
        self.data = of_rows(
            self.dataset,
            recipe.split,
            recipe.targets,
            recipe.optim.batch_size,
            self.accelerator,
            as_evaluated=as_evaluated(self.export.recipe, self.export.specs),
            delta=recipe.deltas,
            unlabelled=recipe.consistency is not None and recipe.consistency.unlabelled,
        )
        known = self.data.targets["train"]
        if self.task == "classification" and not set(known[~known.isnan()].tolist()) <= {0.0, 1.0}:
            raise ConfigError(
                f"'{', '.join(recipe.targets)}' is no class: its values are not 0 and 1", do="head.kind=regression"
            )
        self.fitter = RowFitter(recipe, self.export, self.data, self.accelerator, self.task)
        self._best: Best | None = None

    @property
    def best_row(self) -> RowConfig | None:
        """The registered row: the best by validation among those that use pretrained encoders."""
        return self._best.row if self._best else None

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
        plan = row.plan()
        # what neither the seed's labels nor the seed's weights change is fitted once
        once = row.label_fraction == 1 and plan.kind in DETERMINISTIC
        for seed in self.recipe.seeds[:1] if once else self.recipe.seeds:
            outcome = self.fitter.fit(row, seed)
            result.validation.append(outcome.validation)
            result.test.append(evaluate(self.task, outcome.predictions, outcome.targets))
            if not result.predictions.size:
                result.predictions, result.targets = outcome.predictions.numpy(), outcome.targets.numpy()
            if isinstance(plan, Adaptation) and plan.pretrained and outcome.predictor is not None:
                self._remember(outcome.validation, outcome.predictor, row, plan)
        summary = result.summary()
        name = re.sub(r"[^\w.]+", "-", "_".join([row.label, *row.modalities]))
        tracker.metrics({f"{name}/{k}": v for k, v in summary.items() if isinstance(v, float)}, 0)
        metric = SELECTION[self.task]
        self.report(
            f"{'+'.join(self.recipe.targets)}  {row.label:8} {'+'.join(row.modalities):40} "
            f"test {metric} {summary[f'test_{metric}']:.4f} +- {summary[f'test_{metric}_std']:.4f}"
        )
        return result

    def _remember(
        self, validation: dict[str, float], predictor: Predictor, row: RowConfig, adaptation: Adaptation
    ) -> None:
        metric = SELECTION[self.task]
        best = self._best.score if self._best else worst(metric)
        if better(metric, validation[metric], best):
            metrics = {f"val_{name}": value for name, value in validation.items()}
            self._best = Best(validation[metric], copy.deepcopy(predictor).cpu(), row, adaptation, metrics)

    def _save(self, results: list[Result]) -> None:
        """Write the table as JSON and CSV, and the parity plot of the row that is registered."""
        folder = self.out / REPORT
        folder.mkdir(parents=True, exist_ok=True)
        table = [result.summary() for result in results]
        write_json(folder / "table.json", {"target": "+".join(self.recipe.targets), "rows": table})
        write_csv(folder / "table.csv", [{**row, "modalities": "+".join(row["modalities"])} for row in table])
        for result in results:
            if result.row == self.best_row and self.task == "regression":
                label = f"{result.row.label}, {'+'.join(result.row.modalities)}, test"
                for i, name in enumerate(self.recipe.targets):
                    parity_plot(folder, name, label, result.targets[:, i], result.predictions[:, i])

    def _register(self, tracker: Tracker) -> None:
        assert self._best is not None
        best, recipe = self._best, self.recipe
        info = PredictorInfo(
            targets=recipe.targets,
            task=self.task,
            modalities=best.row.modalities,
            head=self.head_options.model_dump(mode="json"),
            foundation=recipe.model,
            foundation_seal=self.seal,
            strategy=best.row.label,
            metrics=best.metrics,
            adaptation=best.adaptation.model_dump(mode="json"),
            fusion=best.row.fusion,
            delta=recipe.deltas,
            start=best.row.start,
            calibration=self._calibration(best),
        )
        folder = self.out / "predictor"
        write_predictor(folder, best.predictor, self.export, info)
        metric = SELECTION[self.task]
        uri = tracker.register(
            folder,
            recipe.register_as or recipe.name,
            score=-best.score if metric in LOWER_IS_BETTER else best.score,
            parameters={
                "strategy": best.row.label,
                "modalities": ",".join(best.row.modalities),
                "foundation": recipe.model,
            },
            contest={
                "data": self.dataset.manifest.name,
                "data_sha256": self.dataset.sha256,
                "split": recipe.split,
                "metric": f"validation {metric} of {'+'.join(recipe.targets)}",
                **self.data.contest,
            },
        )
        if uri:
            self.report(f"registered {uri}")

    def _calibration(self, best: Best) -> dict[str, Any]:
        """Fit intervals, or the temperature of probabilities, to the validation part."""
        batches = self.data.batches(best.row.modalities, "val", self.recipe.deltas)
        prediction = Prediction.join([best.predictor.predict(batch.to("cpu")) for batch in batches])
        targets = self.data.parts["val"].targets
        task = cast(Task, self.task)
        found = Calibration.fit(prediction, targets, level=self.recipe.interval, task=task)
        return found.model_dump(mode="json")

    def _check_split(self) -> None:
        """Refuse to test on what the model was pretrained on: the same data (or part of a mix) under another split."""
        if self.recipe.pairs is not None and self.recipe.pairs.leave == "pair":
            # materials are not divided at all
            return
        seen = set(self.export.metrics["data_contents"])
        if seen & set(self.dataset.contents) and self.export.recipe.data.split != self.recipe.split:
            raise ConfigError(
                f"the model was pretrained on split '{self.export.recipe.data.split}' of this data set",
                where="split",
                why=f"the test part of '{self.recipe.split}' holds materials that it has seen",
                do=f"--set split={self.export.recipe.data.split}",
            )


def start_accelerator(recipe: FinetuneRecipe) -> Accelerator:
    """Return accelerate's view of ranks and devices; under its DeepSpeed plug-in, with what that must know."""
    # staged unfreezing leaves parameters out at first: their gradients must not be waited for
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    has_gpu = torch.cuda.is_available()
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if not has_gpu and deepspeed:
        # accelerate's own start would have DeepSpeed compile an extension, which takes minutes
        from pretrain.engine import start_process_group

        start_process_group()
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    # without `cpu`, accelerate takes the ranks of a CPU launch for strangers; with it, it leaves DeepSpeed out
    accelerator = Accelerator(cpu=not has_gpu and not deepspeed, kwargs_handlers=handlers)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        if recipe.optim.accumulate > 1:
            raise ConfigError(
                "batches are not accumulated under DeepSpeed here",
                where="optim.accumulate",
                do="raise optim.batch_size",
            )
        micro = max(1, recipe.optim.batch_size // accelerator.num_processes)
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": micro,
            "train_batch_size": micro * accelerator.num_processes,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": recipe.optim.grad_clip,
        }
    return accelerator
