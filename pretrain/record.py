"""What a run leaves behind: metrics, the best export, the registered model. Rank 0 alone writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from pretrain.config import Recipe
from pretrain.evaluate import Row
from pretrain.export import write_export, write_json
from pretrain.export_files import METRICS as EXPORT_METRICS
from pretrain.model import MultimodalModel
from pretrain.parts import Fitted
from pretrain.plots import loss_plot, retrieval_plot
from pretrain.tracking import Tracker
from shards.mixture import Mixture
from shards.reader import Dataset

BEST, METRICS, VALIDATION = "best", "metrics.jsonl", "validation.json"


class Recorder:
    """The records of one run, used as a context.

    Parameters
    ----------
    recipe : Recipe
        What is trained.
    out : Path
        Folder of the run.
    dataset : Dataset or Mixture
        What it is trained on.
    world : int
        Number of ranks, for the record.
    enabled : bool
        False on every rank but the first: then every method does nothing.
    report : callable
        Gets a line when the tracking server goes away or is back.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        dataset: Dataset | Mixture,
        *,
        world: int,
        enabled: bool,
        report: Callable[[str], None] = print,
    ) -> None:
        self.recipe, self.out, self.enabled = recipe, out, enabled
        self.data = {"data": dataset.name, "data_sha256": dataset.sha256}
        self.contents = dataset.contents
        self.parameters = {**recipe.resolved(), "world": world, "data_samples": len(dataset)}
        self.report = report
        self._open = ExitStack()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def start(self, step: int, *, evaluated: bool = True) -> None:
        """Begin at ``step``; see `rewind`."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.tracker = self._open.enter_context(
            Tracker(
                self.out,
                self.recipe.tracking.experiment,
                self.recipe.name,
                self.parameters,
                resume=step > 0,
                enabled=self.enabled,
                report=self.report,
            )
        )
        self.rewind(step, evaluated=evaluated)

    def rewind(self, step: int, *, evaluated: bool = True) -> None:
        """Drop the metrics of later steps, which will be done again; not ``evaluated``: this step's validation too."""
        if not self.enabled:
            return
        path = self.out / METRICS
        lines = path.read_text().splitlines(keepends=True) if path.exists() and step else []
        # a kill may have cut the last line short
        whole = [(json.loads(line), line) for line in lines if line.endswith("}\n")]
        kept = [
            line
            for values, line in whole
            if values["step"] < step or (values["step"] == step and (evaluated or "val/mrr" not in values))
        ]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        os.replace(partial, path)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of metrics, and send it to MLflow."""
        if not self.enabled:
            return
        try:
            with (self.out / METRICS).open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            # a full disk is no reason to end; the tracker keeps the values
            self.report(f"step {step} is missing in {METRICS}: {error.strerror}")
        self.tracker.metrics(values, step)

    def export(self, model: MultimodalModel, fitted: Fitted, step: int, validation: list[Row]) -> None:
        """Write the export of the best model so far."""
        if not self.enabled:
            return
        write_export(
            self.out / BEST,
            model,
            self.recipe,
            fitted,
            step=step,
            data_name=self.data["data"],
            data_sha256=self.data["data_sha256"],
            data_contents=self.contents,
            validation=validation,
        )
        write_json(self.out / VALIDATION, validation)

    def finish(self, score: float) -> str | None:
        """Draw the plots, register the best export where the recipe says so, and return its URI."""
        if not self.enabled:
            return None
        plots = self.out / "plots"
        plots.mkdir(exist_ok=True)
        loss_plot(plots, self.out / METRICS)
        retrieval_plot(plots, json.loads((self.out / VALIDATION).read_text()))
        self.tracker.files(plots, "plots")
        name = self.recipe.tracking.register_as
        if name is None:
            return None
        exported = json.loads((self.out / BEST / EXPORT_METRICS).read_text())
        uri = self.tracker.register(
            self.out / BEST,
            name,
            score=score,
            parameters={"objective": self.recipe.objective["kind"], "step": exported["step"]},
            contest={
                **self.data,
                "split": self.recipe.data.split,
                "modalities": ",".join(self.recipe.modalities),
                "metric": f"validation MRR, complete_only={self.recipe.evaluation.complete_only}",
            },
        )
        return uri
