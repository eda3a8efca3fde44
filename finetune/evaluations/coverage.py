"""Whether a density on the embedding tells where a model has seen materials, and where it will be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import isnan
from typing import ClassVar, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from pydantic import Field
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score

from finetune.density import METHODS, Density, Method
from finetune.evaluations.base import EVALUATIONS, Evaluation, Findings, Subject
from finetune.evaluations.embedding import vectors_of
from finetune.evaluations.rows import Measure, Rows, predictor_of, rows_of
from finetune.evaluations.stated import Found
from finetune.loading import Loaded, PropertyModel, device_of
from pretrain.plots import Row
from shards.batch import collate
from shards.errors import ConfigError

BATCH = 64
FITTED_ON = "train"


@dataclass(frozen=True)
class Placed:
    """Rows of a part: ids, vectors (N, D) of the embedding, and what a predictor loses on each (N,), if it is one."""

    ids: list[str]
    vectors: np.ndarray
    loss: np.ndarray | None = None


@EVALUATIONS.register("coverage")
class Coverage(Evaluation):
    """Density of the training part around the rows of two others, beside the predictor's errors there.

    Attributes
    ----------
    inside : str
        A part that is alike the training part; the tested part is the one that may be outside.
    components : int
        Most dimensions of the density, after whitening by principal components.
    neighbours : int
        k of the distance to the k-th nearest training row.
    method : str
        What is plotted and listed; all three are measured.
    embedding : str
        A modality or fusion of a pretrained model; empty: the first. Of a predictor it is what its head reads.
    """

    wants: ClassVar[type] = Loaded

    kind: Literal["coverage"] = "coverage"
    inside: str = "val"
    components: int = Field(10, ge=1, le=10)
    neighbours: int = Field(10, ge=1)
    method: Method = "kde"
    embedding: str = ""

    def __call__(self, subject: Subject) -> Findings:
        """Fit to the training part, score the two others."""
        if len({FITTED_ON, self.inside, subject.part}) < 3:
            raise ConfigError(
                f"'{FITTED_ON}', '{self.inside}' and '{subject.part}' must be three parts",
                where="coverage.inside",
                do=f"--part and --set coverage.inside=PART other than {FITTED_ON}",
            )
        placed = {part: self._placed(subject, part) for part in (FITTED_ON, self.inside, subject.part)}
        density = Density(placed[FITTED_ON].vectors, components=self.components, neighbours=self.neighbours)
        inside, tested = placed[self.inside], placed[subject.part]
        found = Found()
        scores = {method: tuple(density.score(part.vectors, method) for part in (inside, tested)) for method in METHODS}
        for method, (near, far) in scores.items():
            row = {"score": method, "dimensions": density.components, **separation(near, far)}
            if tested.loss is not None:
                row |= against_error(far, tested.loss)
            found.add("coverage", row)
            figures = {key: value for key, value in row.items() if isinstance(value, float) and not isnan(value)}
            found.values |= {f"{method}/{key}": value for key, value in figures.items()}
        near, far = scores[self.method]
        if tested.loss is not None:
            found.risk(self.method, -far, tested.loss, "mean loss")
            found.plots["error"] = partial(_scatter, score=far, loss=tested.loss, method=self.method)
        found.plots["density"] = partial(
            _histogram, near=near, far=far, parts=(self.inside, subject.part), method=self.method
        )
        found.add("rows", *_listed(self.inside, inside, near), *_listed(subject.part, tested, far))
        return Findings(
            title=f"Coverage of part '{subject.part}' of split '{subject.split}' by the training part",
            text=self._text(subject, density),
            values=found.values,
            tables=found.tables,
            plots=found.plots,
        )

    def _text(self, subject: Subject, density: Density) -> str:
        return (
            f"The embedding is whitened to {density.components} principal components of the training part. kde: log "
            f"density of a Gaussian kernel, Scott's bandwidth; knn: minus the distance to the training row that is "
            f"number {self.neighbours} by distance; mahalanobis: minus the distance from the middle. auroc_ood: how "
            f"surely a row of '{self.inside}' scores above a row of '{subject.part}'; 0.5 where the score sees no "
            "difference between the two. spearman, pearson: correlation of the negative score with the predictor's "
            "loss, which is above 0 where a score warns of errors; aurc: mean loss where the best covered rows are "
            "kept first, aurc_random: "
            "in any order."
        )

    def _placed(self, subject: Subject, part: str) -> Placed:
        if not isinstance(subject.model, PropertyModel):
            vectors, samples, _ = vectors_of(subject, part, self.embedding)
            return Placed([sample.id for sample in samples], vectors)
        if self.embedding:
            raise ConfigError("a predictor has one embedding: what its head reads", where="coverage.embedding")
        model, rows = predictor_of(subject), rows_of(subject, part)
        measure = Measure.of(model, partial(rows_of, subject, FITTED_ON))
        lost = measure.losses(model.estimate(rows.samples).value, rows.targets)
        return Placed([sample.id for sample in rows.samples], features_of(model, rows), lost.numpy())


@torch.no_grad()
def features_of(model: PropertyModel, rows: Rows) -> np.ndarray:
    """Return what the head of a predictor reads of each row (N, F)."""
    found, device = [], device_of(model.predictor)
    for start in range(0, len(rows.samples), BATCH):
        batch = collate([model.as_evaluated(sample) for sample in rows.samples[start : start + BATCH]], model.specs)
        found.append(model.predictor.featurizer(batch.to(device)).double().cpu())
    return torch.cat(found).numpy()


def separation(near: np.ndarray, far: np.ndarray) -> dict[str, float]:
    """Say how surely scores of rows inside (N,) are above those of rows outside (M,), and where the two lie."""
    inside = np.repeat([1, 0], [len(near), len(far)])
    return {
        "auroc_ood": float(roc_auc_score(inside, np.concatenate([near, far]))),
        "median_inside": float(np.median(near)),
        "median_tested": float(np.median(far)),
    }


def against_error(score: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    """Correlate the negative score (N,) with the loss (N,); NaN where one of them is constant."""
    from finetune.metrics.uncertainty import aurc

    defined = len(score) > 2 and np.ptp(score) > 0 and np.ptp(loss) > 0
    return {
        "spearman": float(spearmanr(-score, loss).statistic) if defined else float("nan"),
        "pearson": float(pearsonr(-score, loss).statistic) if defined else float("nan"),
        **aurc(-score, loss),
    }


def _listed(part: str, placed: Placed, score: np.ndarray) -> list[Row]:
    losses_ = placed.loss if placed.loss is not None else [None] * len(score)
    return [
        {"id": name, "part": part, "score": float(value)} | ({} if loss is None else {"loss": float(loss)})
        for name, value, loss in zip(placed.ids, score, losses_, strict=True)
    ]


def _histogram(axes: Axes, *, near: np.ndarray, far: np.ndarray, parts: tuple[str, str], method: str) -> None:
    bins = np.histogram_bin_edges(np.concatenate([near, far]), bins=40)
    for values, part in zip((near, far), parts, strict=True):
        axes.hist(values, bins=list(bins), alpha=0.6, density=True, label=part)
    axes.set(xlabel=f"{method} score: the higher, the better covered", ylabel="density of the rows")
    axes.legend(fontsize=7)


def _scatter(axes: Axes, *, score: np.ndarray, loss: np.ndarray, method: str) -> None:
    axes.scatter(score, loss, s=8, alpha=0.6)
    axes.set(xlabel=f"{method} score: the higher, the better covered", ylabel="loss")
