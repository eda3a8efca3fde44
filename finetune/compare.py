"""The honest table: the same target, split and seeds for pretrained, scratch, probe and trivial predictors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from finetune.accelerators import start_accelerator
from finetune.adapt.base import Adaptation
from finetune.champion import Best, Champion, measured
from finetune.config import FinetuneRecipe, RowConfig
from finetune.data import TargetData, check_schema
from finetune.fold_data import fold_data
from finetune.head_rows import check_head, check_inputs
from finetune.heads.base import HEADS
from finetune.metrics import LOWER_IS_BETTER, SELECTION
from finetune.pair_data import PairData
from finetune.predictor import FOLDS, PredictorInfo, read_predictor, write_predictor
from finetune.registry import resolve
from finetune.report import parity_plot
from finetune.results import Result
from finetune.rows import RowFitter
from finetune.targets import grouped
from finetune.trained_on import TrainedOn
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
        self.pretrained_on_these = self._check_split()
        self.fitters = {
            fold: RowFitter(recipe, self.export, data, self.accelerator, self.task)
            for fold, data in self._data().items()
        }
        # of the split, or of the first fold
        self.fitter = next(iter(self.fitters.values()))
        self.data = self.fitter.data
        check_inputs(recipe, self.data.found)
        self.champion = Champion(recipe, self.task)

    def _data(self) -> dict[str, TargetData]:
        """Return the labelled rows of the split, under no name, or of every fold under its own."""
        recipe = self.recipe
        options: dict[str, Any] = {
            "as_evaluated": as_evaluated(self.export.recipe, self.export.specs),
            "delta": recipe.deltas,
            "unlabelled": recipe.consistency is not None and recipe.consistency.unlabelled,
            "components": HEADS.get(self.head_options.kind).parts_of,
        }
        rest = (recipe.targets, recipe.optim.batch_size, self.accelerator)
        found: dict[str, TargetData]
        if recipe.folds is not None:
            found = fold_data(recipe.folds, self.dataset, *rest, **options)
        elif recipe.pairs is not None:
            found = {"": PairData(self.dataset, recipe.split, *rest, pairs=recipe.pairs, **options)}
        else:
            found = {"": TargetData(self.dataset, recipe.split, *rest, **options)}
        known = torch.cat([rows for data in found.values() for rows in data.targets.values()])
        if self.task == "classification" and not set(known[~known.isnan()].tolist()) <= {0.0, 1.0}:
            raise ConfigError(
                f"'{', '.join(recipe.targets)}' is no class: its values are not 0 and 1", do="head.kind=regression"
            )
        return found

    @property
    def best_row(self) -> RowConfig | None:
        """The registered row: the best by validation among those that use pretrained encoders."""
        return self.champion.best.row if self.champion.best else None

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
            if main and self.champion.best is not None:
                self._register(tracker, self.champion.best)
        return results

    def _row(self, row: RowConfig, tracker: Tracker) -> Result:
        result = Result(row)
        plan = row.plan()
        # what neither the seed's labels nor the seed's weights change is fitted once
        once = row.label_fraction == 1 and plan.kind in DETERMINISTIC
        seeds = self.recipe.seeds[:1] if once else self.recipe.seeds
        candidate = isinstance(plan, Adaptation) and plan.pretrained and self.champion.wanted
        for fold, fitter in self.fitters.items():
            outcomes = []
            for seed in seeds:
                outcomes.append(fitter.fit(row, seed))
                result.add(fold, seed, outcomes[-1])
                if candidate:
                    self.champion.show(row, cast(Adaptation, plan), fold, seed, outcomes[-1])
            if self.recipe.ensemble is not None:
                result.add_together(outcomes, self.recipe.ensemble.how, self.task)
        if candidate:
            self.champion.close(row, cast(Adaptation, plan))
        self._tell(result, tracker)
        return result

    def _tell(self, result: Result, tracker: Tracker) -> None:
        row = result.row
        summary = result.summary()
        name = re.sub(r"[^\w.]+", "-", "_".join([row.label, *row.modalities]))
        tracker.metrics({f"{name}/{k}": v for k, v in summary.items() if isinstance(v, float)}, 0)
        for number, line in enumerate(result.by_fold() if self.recipe.folds else ()):
            tracker.metrics({f"{name}/fold_{k}": v for k, v in line.items() if isinstance(v, float)}, number)
        metric = SELECTION[self.task]
        self.report(
            f"{'+'.join(self.recipe.targets)}  {row.label:8} {'+'.join(row.modalities):40} "
            f"test {metric} {summary[f'test_{metric}']:.4f} +- {summary[f'test_{metric}_std']:.4f}"
        )

    def _save(self, results: list[Result]) -> None:
        """Write the table as JSON and CSV, and the parity plot of the row that is registered."""
        folder = self.out / REPORT
        folder.mkdir(parents=True, exist_ok=True)
        table = [result.summary() for result in results]
        about: dict[str, Any] = {"target": "+".join(self.recipe.targets)}
        if self.recipe.folds is not None:
            about["pretrained_on_held_out"] = self.pretrained_on_these
            write_csv(folder / "folds.csv", [line for result in results for line in result.by_fold()])
        write_json(folder / "table.json", {**about, "rows": table})
        write_csv(folder / "table.csv", [{**row, "modalities": "+".join(row["modalities"])} for row in table])
        for result in results:
            if result.row == self.best_row and self.task == "regression":
                label = f"{result.row.label}, {'+'.join(result.row.modalities)}, test"
                # all components of a tensor or a spectrum go into one plot
                for name, columns in grouped(self.data.names).items():
                    parity_plot(folder, name, label, result.targets[:, columns], result.predictions[:, columns])

    def _register(self, tracker: Tracker, best: Best) -> None:
        recipe = self.recipe
        metrics, calibration = measured(best, recipe, self._rows(), self.task)
        info = PredictorInfo(
            targets=self.data.names,
            task=self.task,
            modalities=best.row.modalities,
            head=self.head_options.model_dump(mode="json"),
            foundation=recipe.model,
            foundation_seal=self.seal,
            strategy=best.row.label,
            metrics=metrics,
            adaptation=best.adaptation.model_dump(mode="json"),
            fusion=best.row.fusion,
            delta=recipe.deltas,
            start=best.row.start,
            calibration=calibration,
            members=len(best.members),
            how="mean" if recipe.ensemble is None else recipe.ensemble.how,
            split=recipe.split if recipe.folds is None else FOLDS,
            data_contents=tuple(self.dataset.contents),
        )
        folder = self.out / "predictor"
        write_predictor(folder, best.predictor, self.export, info)
        metric = SELECTION[self.task]
        score = metrics[f"val_{metric}"]
        about = {"strategy": best.row.label, "modalities": ",".join(best.row.modalities)}
        uri = tracker.register(
            folder,
            recipe.register_as or recipe.name,
            score=-score if metric in LOWER_IS_BETTER else score,
            parameters={**about, "foundation": recipe.model, "members": len(best.members)},
            contest={
                "data": self.dataset.manifest.name,
                "data_sha256": self.dataset.sha256,
                "split": recipe.split if recipe.folds is None else f"folds {recipe.folds.model_dump_json()}",
                "metric": f"validation {metric} of {'+'.join(recipe.targets)}",
                **self.data.contest,
            },
        )
        for member in best.members if recipe.ensemble else ():
            # linked to the ensemble, of which they must not be taken for its own
            values = {f"member_val_{k}": v for k, v in member.validation.items()}
            values |= {f"member_test_{k}": v for k, v in member.test.items()}
            name = "-".join(filter(None, [recipe.name, member.fold.replace(" ", "-"), f"seed-{member.seed}"]))
            tracker.member(name, {**about, "fold": member.fold or recipe.split, "seed": member.seed}, values)
        if uri:
            self.report(f"registered {uri}")

    def _rows(self) -> dict[str, TargetData]:
        return {fold: fitter.data for fold, fitter in self.fitters.items()}

    def _check_split(self) -> bool:
        """Refuse to test on what a model was pretrained on: the same data (or part of a mix) under another split.

        Of folds, say whether it was, where the recipe allows it.
        """
        if self.recipe.pairs is not None and self.recipe.pairs.leave == "pair":
            # materials are not divided at all
            return False
        models = {self.recipe.model: TrainedOn.of(self.export)}
        for row in self.recipe.rows:
            plan = row.plan()
            if isinstance(plan, Adaptation):
                models |= plan.check_data(row.modalities, self.dataset)
            if row.start is not None:
                models[row.start] = TrainedOn.of(read_predictor(resolve(row.start))[1])
        seen = [uri for uri, trained in models.items() if trained.shares(self.dataset)]
        if self.recipe.folds is None:
            for uri, trained in models.items():
                self._check_same_split(uri, trained)
        elif seen and self.recipe.folds.seen == "error":
            raise ConfigError(
                f"'{seen[0]}' was trained on this data set",
                where="folds",
                why="every fold would be tested on materials that the encoders have seen",
                do="pretrain on other data, use the split of the pretraining, or say so: folds.seen = 'allow'",
            )
        return bool(seen)

    def _check_same_split(self, uri: str, trained: TrainedOn) -> None:
        whose = "the model was pretrained" if uri == self.recipe.model else f"'{uri}' was trained"
        if trained.has_seen(self.dataset, self.recipe.split):
            raise ConfigError(
                f"{whose} on split '{trained.split}' of this data set",
                where="split",
                why=f"the test part of '{self.recipe.split}' holds materials that it has seen",
                do=f"--set split={trained.split}",
            )
