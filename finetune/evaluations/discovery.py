"""Discovery by spectrum: how like a wanted density of states are those of the materials that a search proposes.

MultiMat's evaluation (arXiv:2312.00111): a query is the density of states of a held-out material, candidates are the
crystals of the training materials, ranked by cosine in the latent space; of the first N candidates the one with the
most similar density of states counts.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from matplotlib.axes import Axes
from pydantic import Field
from scipy.special import gammaln

from finetune.evaluations.base import EVALUATIONS, Evaluation, Findings, Subject
from finetune.loading import Foundation
from finetune.metrics.spectra import integral_scores, trapezoid_weights
from finetune.search.index import Index
from pretrain.plots import Row
from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from shards.schema import ModalitySpec

CHUNK = 256


@EVALUATIONS.register("discovery")
class Discovery(Evaluation):
    """Best of the first N candidates by the integral score, beside random candidates and the best there are.

    Attributes
    ----------
    query : str
        Spectrum modality of the held-out materials: what is wanted.
    among : str
        Modality by which the candidates, training materials that have the spectrum too, are embedded.
    best_of : int
        Largest N.
    window : (float, float)
        What is integrated, in the unit of the spectrum's grid.
    grid : (float, float), optional
        First and last point of the grid, where the schema does not say (``start`` and ``stop`` of its feature step).
    """

    wants: ClassVar[type] = Foundation

    kind: Literal["discovery"] = "discovery"
    query: str = "dos"
    among: str = "crystal"
    best_of: int = Field(15, ge=1, le=1000)
    window: tuple[float, float] = (-5.0, 5.0)
    grid: tuple[float, float] | None = None

    def __call__(self, subject: Subject) -> Findings:
        """Rank the training materials for every held-out spectrum."""
        model, dataset = subject.model, subject.dataset
        assert isinstance(model, Foundation)
        for name in (self.query, self.among):
            if name not in dataset.modalities:
                raise ConfigError(f"the data set has no modality '{name}'", where=dataset.location)
        if subject.part == "train":
            raise ConfigError("the training materials are the candidates", do="evaluate another part")
        asked, answers = (self._having(dataset, subject.split, part) for part in (subject.part, "train"))
        weights = weights_of(dataset.modalities[self.query], self.window, self.grid)
        wanted, known = (spectra(dataset, self.query, rows) for rows in (asked, answers))
        there = wanted @ weights > 0
        if there.sum() < 1 or len(answers) < self.best_of:
            raise DataError(
                f"{int(there.sum())} spectra to look for, {len(answers)} candidates that have one",
                where=dataset.location,
            )
        wanted, asked = wanted[there], asked[there]
        queries, index = (
            Index.build(model, dataset, name, positions=rows)
            for name, rows in ((self.query, asked), (self.among, answers))
        )
        curves = best_of_n(wanted, known, weights, index.places(queries.vectors, self.best_of)[1])
        return self._findings(subject, curves, len(asked), len(answers), int((~there).sum()))

    def _having(self, dataset: Dataset, split: str, part: str) -> np.ndarray:
        """Return the samples of a part that can be a query, or a candidate that can be scored."""
        positions = dataset.positions(split, part)
        here = dataset.presence(self.query)[positions]
        return positions[here if part != "train" else here & dataset.presence(self.among)[positions]]

    def _findings(
        self, subject: Subject, curves: dict[str, np.ndarray], count: int, candidates: int, skipped: int
    ) -> Findings:
        mean = {name: curve.mean(axis=0) for name, curve in curves.items()}
        table: list[Row] = [
            {
                "n": n + 1,
                **{name: float(mean[name][n]) for name in mean},
                **{f"{name}_median": float(np.median(curves[name][:, n])) for name in mean},
            }
            for n in range(self.best_of)
        ]
        gain = (mean["random"] - mean["model"]) / np.maximum(mean["random"] - mean["oracle"], 1e-12)
        values = {f"score_best_of_{n}": float(mean["model"][n - 1]) for n in {1, min(5, self.best_of), self.best_of}}
        return Findings(
            title=f"Discovery: {count} spectra '{self.query}' of part '{subject.part}', {candidates} candidates",
            text="score: integral of |wanted - found| over that of the wanted spectrum, from "
            f"{self.window[0]:g} to {self.window[1]:g}, the least among the first N candidates; 0: the same spectrum. "
            "random: its exact expectation for candidates in random order; oracle: the most similar one of all. "
            "gain: the share of the way from random to oracle. Targets without any weight in the window are skipped "
            f"({skipped}). Where the model was pretrained on the part, it has seen the targets.",
            values={**values, "random": float(mean["random"][-1]), "oracle": float(mean["oracle"][-1]),
                    "gain": float(gain[-1]), "gain_at_1": float(gain[0])},
            tables={"discovery": table},
            plots={"discovery": lambda axes: _draw(axes, mean)},
        )  # fmt: skip


def weights_of(spec: ModalitySpec, window: tuple[float, float], grid: tuple[float, float] | None = None) -> np.ndarray:
    """Return the weights (P,) by which values on the grid of a spectrum are summed to its integral over a window."""
    if spec.kind != "spectrum" or len(spec.fields) != 1:
        raise ConfigError(f"'{spec.name}' is a {spec.kind}, no spectrum of one field")
    (points,) = next(iter(spec.fields.values())).shape
    if grid is None:
        if not {"start", "stop"} <= spec.feature.keys():
            raise ConfigError(f"the schema does not say where '{spec.name}' begins and ends", do="discovery.grid=[A,B]")
        grid = float(spec.feature["start"]), float(spec.feature["stop"])
    return trapezoid_weights(np.linspace(*grid, int(points)), window, where="discovery.window")


def spectra(dataset: Dataset, name: str, positions: np.ndarray) -> np.ndarray:
    """Return the spectra (N, P) of samples that have them."""
    read = dataset.select([name])
    rows = [next(iter(read[int(place)].arrays[name].values())) for place in positions]
    return np.stack(rows).astype(np.float64) if rows else np.zeros((0, 1))


def best_of_n(wanted: np.ndarray, known: np.ndarray, weights: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
    """Return the least score among the first N = 1, 2, ... candidates of T targets.

    Parameters
    ----------
    wanted, known : ndarray
        Spectra of the T targets and of all C candidates.
    weights : ndarray
        See `finetune.metrics.spectra.trapezoid_weights`.
    places : ndarray
        (T, K) candidates in the order in which the model proposes them.

    Returns
    -------
    dict of str to ndarray
        (T, K) each: ``model``; ``random``, the exact expectation over all orders of the candidates; ``oracle``.
    """
    parts: dict[str, list[np.ndarray]] = {"model": [], "random": [], "oracle": []}
    chances = _chances_of_least(len(known), places.shape[1])
    for start in range(0, len(wanted), CHUNK):
        some = places[start : start + CHUNK]
        scores = integral_scores(wanted[start : start + CHUNK], known, weights)
        parts["model"].append(np.minimum.accumulate(np.take_along_axis(scores, some, axis=1), axis=1))
        parts["random"].append(np.sort(scores, axis=1) @ chances)
        parts["oracle"].append(np.repeat(scores.min(axis=1, keepdims=True), some.shape[1], axis=1))
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def _chances_of_least(count: int, most: int) -> np.ndarray:
    """Return the probability (C, K) that the i-th smallest of C values is the least of N drawn without replacement.

    It is C(C - 1 - i, N - 1) / C(C, N), for N = 1 to K.
    """
    drawn = np.arange(1, most + 1)
    larger = (count - 1 - np.arange(count))[:, None]

    def log_choose(n: np.ndarray | int, k: np.ndarray) -> np.ndarray:
        return gammaln(np.asarray(n) + 1.0) - gammaln(k + 1.0) - gammaln(np.maximum(n - k, 0) + 1.0)

    logs = log_choose(larger, drawn - 1) - log_choose(count, drawn)
    return np.where(larger >= drawn - 1, np.exp(logs), 0.0)


def _draw(axes: Axes, mean: dict[str, np.ndarray]) -> None:
    for name, curve in mean.items():
        axes.plot(np.arange(1, len(curve) + 1), curve, "--" if name != "model" else "-", label=name)
    axes.set(xlabel="candidates looked at", ylabel="mean score of the best", ylim=(0, None))
    axes.legend()
