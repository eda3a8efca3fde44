"""What a predictor loses when modalities are missing: every subset, every rate, three mechanisms, honest references.

The protocol of the survey's missing-modality section; its references are a predictor of the subset alone, and the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import ClassVar, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from pydantic import Field, field_validator
from torch import Tensor

from finetune.evaluations.base import EVALUATIONS, Evaluation, Findings, Subject
from finetune.evaluations.references import References
from finetune.evaluations.rows import Measure, Rows, only, predictor_of, rows_of, trivial
from finetune.loading import PropertyModel
from pretrain.plots import Row
from shards.errors import DataError

Mechanism = Literal["mcar", "whole_modality", "mnar"]

MECHANISMS: tuple[Mechanism, ...] = ("mcar", "whole_modality", "mnar")
NOTHING = "training mean (of a difference: the mean difference), or most frequent class"
# up to this number of modalities every subset is looked at
ALL_SUBSETS = 6


@EVALUATIONS.register("missing")
class Missing(Evaluation):
    """Degradation of a predictor without some of its modalities.

    Attributes
    ----------
    rates : tuple of float
        Shares of the modalities that are removed.
    mechanisms : tuple of str
        ``mcar``: each modality of each sample, independently. ``whole_modality``: a modality from all samples at once.
        ``mnar``: as ``mcar``, but the more likely the higher the sample's (first) label, or class
        number.
    repeats : int
        Draws a rate and mechanism; draw r uses the seed (seed, r).
    random_subsets : int
        How many subsets are drawn, beside singletons and leave-one-outs, where there are more than six modalities.
    references : dict of str to str
        Modalities joined by + to the URI of a predictor that was trained on these alone. A subset without one is
        compared with a linear probe on the frozen encoders.
    """

    wants: ClassVar[type] = PropertyModel

    kind: Literal["missing"] = "missing"
    rates: tuple[float, ...] = Field((0.0, 0.1, 0.3, 0.5, 0.7, 0.9), min_length=2)
    mechanisms: tuple[Mechanism, ...] = Field(MECHANISMS, min_length=1)
    repeats: int = Field(50, ge=1)
    random_subsets: int = Field(20, ge=0)
    references: dict[str, str] = {}

    @field_validator("rates")
    @classmethod
    def _shares(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if list(rates) != sorted(set(rates)) or not 0 <= rates[0] <= rates[-1] < 1:
            raise ValueError("rates must ascend from 0 or more to less than 1")
        return rates

    def __call__(self, subject: Subject) -> Findings:
        """Measure every subset, then every rate of every mechanism."""
        model = predictor_of(subject)
        names, every = tuple(model.specs), rows_of(subject, subject.part)
        if len(names) < 2:
            raise DataError(f"the predictor looks at '{names[0]}' alone: there is nothing to leave out")
        rows = every.at([i for i, sample in enumerate(every.samples) if sample.modalities >= set(names)])
        if len(rows.samples) < 2:
            raise DataError(
                f"part '{subject.part}' has {len(rows.samples)} labelled samples with all of {list(names)}",
                where=subject.dataset.location,
            )
        train = rows_of(subject, "train")
        measure = Measure.of(model, lambda: train)
        headline = measure.headline
        predictions = Predictions(model, rows)
        references = References(self.references, subject, train)
        nothing = measure.metrics(trivial(measure.task, train, rows), rows.targets)
        subsets = self._subsets(predictions, references, measure, subject.seed)
        curves = self._curves(predictions, measure, subject.seed)
        areas = _areas(curves, float(subsets[0][headline]))
        values = {f"{headline}/{row['modalities']}": float(row[headline]) for row in subsets}
        values |= {f"area/{row['mechanism']}": float(row["area"]) for row in areas}
        return Findings(
            title=f"Missing modalities: {', '.join(model.info.targets)} on part '{subject.part}'",
            text=measure.text + _text(headline, len(rows.samples), len(every.samples), subject.seed, self.repeats),
            values={**values, f"{headline}/mean_predictor": nothing[headline]},
            tables={
                "subsets": subsets, "rates": curves, "areas": areas,
                "mean_predictor": [{"predictor": NOTHING, **nothing}],
            },
            plots={
                "subsets": partial(_draw_subsets, rows=subsets, headline=headline, nothing=nothing[headline]),
                "rates": partial(_draw_rates, rows=curves, headline=headline),
            },
        )  # fmt: skip

    def _subsets(self, predictions: Predictions, references: References, measure: Measure, seed: int) -> list[Row]:
        rows = predictions.rows
        whole = measure.losses(predictions.of_subset(predictions.names), rows.targets)
        table: list[Row] = []
        for subset in subsets_of(predictions.names, self.random_subsets, seed):
            values = predictions.of_subset(subset)
            lost = measure.losses(values, rows.targets)
            low, high = interval(lost - whole, seed)
            reference = references.of(subset)
            table.append(
                {
                    "modalities": "+".join(subset), "n": len(lost), **measure.metrics(values, rows.targets),
                    "drop": float((lost - whole).mean()), "drop_low": low, "drop_high": high,
                    "relative_drop": relative(float((lost - whole).mean()), float(whole.mean())),
                    f"reference_{measure.headline}": measure.mean(reference(rows.samples), rows.targets),
                    "reference": reference.name,
                }
            )  # fmt: skip
        return table

    def _curves(self, predictions: Predictions, measure: Measure, seed: int) -> list[Row]:
        rows = predictions.rows
        shape = (len(rows.samples), len(predictions.names))
        whole = measure.mean(predictions.of_subset(predictions.names), rows.targets)
        # the first target of which any of these rows is known
        label = next(column for column in rows.targets.T if not column.isnan().all())
        table: list[Row] = []
        for mechanism in self.mechanisms:
            for rate in self.rates:
                kept = [removal(mechanism, rate, shape, label, seed=[seed, r]) for r in range(self.repeats)]
                lost = [measure.mean(predictions.of(mask), rows.targets) for mask, _ in kept]
                drop = float(np.mean(lost)) - whole
                table.append(
                    {
                        "mechanism": mechanism, "rate": rate, "repeats": self.repeats,
                        "removed": float(np.mean([1 - mask.mean() for mask, _ in kept])),
                        "spared": float(np.mean([spared for _, spared in kept])),
                        measure.headline: float(np.mean(lost)), "std": float(np.std(lost)),
                        "drop": drop, "relative_drop": relative(drop, whole),
                    }
                )  # fmt: skip
        return table


class Predictions:
    """Predictions of the same rows from any subset of their modalities, each computed once.

    Rows are independent of each other in evaluation, so that any pattern of missing modalities is put together from
    these.
    """

    def __init__(self, model: PropertyModel, rows: Rows) -> None:
        self.model, self.rows, self.names = model, rows, tuple(model.specs)
        self._values: dict[tuple[str, ...], Tensor] = {}

    def of_subset(self, subset: Sequence[str]) -> Tensor:
        """Return the values (N, T) that the predictor gives where all rows have the same modalities."""
        key = tuple(subset)
        if key not in self._values:
            self._values[key] = self.model.estimate([only(sample, set(key)) for sample in self.rows.samples]).value
        return self._values[key]

    def of(self, kept: np.ndarray) -> Tensor:
        """Return the values (N, T) where row i has the modalities of which ``kept`` (N, M) is True; one at least."""
        values = torch.empty_like(self.rows.targets)
        for pattern in np.unique(kept, axis=0):
            chosen = torch.from_numpy((kept == pattern).all(1))
            subset = [name for name, there in zip(self.names, pattern, strict=True) if there]
            values[chosen] = self.of_subset(subset)[chosen].to(values.dtype)
        return values


def subsets_of(names: Sequence[str], random: int, seed: int) -> list[tuple[str, ...]]:
    """Return the subsets that are looked at, the whole first: all 2^M - 1, or for M > 6 a sample of them.

    The sample holds every single modality, every leave-one-out, and ``random`` further ones.
    """
    sizes = range(len(names), 0, -1)
    if len(names) <= ALL_SUBSETS:
        return [subset for size in sizes for subset in combinations(names, size)]
    found = [tuple(names), *combinations(names, len(names) - 1), *combinations(names, 1)]
    rng, others = np.random.default_rng(seed), 2 ** len(names) - 1 - len(found)
    while random and len(found) < 1 + 2 * len(names) + min(random, others):
        mask = rng.random(len(names)) < 0.5
        subset = tuple(name for name, there in zip(names, mask, strict=True) if there)
        if subset and subset not in found:
            found.append(subset)
    return found


def removal(
    mechanism: str, rate: float, shape: tuple[int, int], label: Tensor, *, seed: Sequence[int]
) -> tuple[np.ndarray, int]:
    """Draw which modalities are kept.

    Parameters
    ----------
    mechanism : str
        See `Missing`.
    rate : float
        Probability that a modality is removed; under ``mnar`` its mean over the rows.
    shape : tuple of int
        N rows, M modalities.
    label : Tensor
        (N,) NaN where unknown (then of middle rank).
    seed : sequence of int
        Of the draw.

    Returns
    -------
    kept : ndarray
        (N, M) bool, at least one True in a row.
    spared : int
        Rows that had lost everything, and of which one modality, drawn at random, was left in place.
    """
    rng = np.random.default_rng(list(seed))
    probability = np.full(shape[0], rate)
    if mechanism == "mnar":
        probability = label_dependent(rate, label.numpy())
    draws = rng.random((1, shape[1]) if mechanism == "whole_modality" else shape)
    kept = np.broadcast_to(draws >= probability[:, None], shape).copy()
    lost = ~kept.any(1)
    left = rng.integers(shape[1], size=1 if mechanism == "whole_modality" else shape[0])
    kept[lost, np.broadcast_to(left, shape[0])[lost]] = True
    return kept, int(lost.sum())


def label_dependent(rate: float, label: np.ndarray) -> np.ndarray:
    """Return probabilities (N,) that ascend with the rank of the label, of mean ``rate`` and within 0 and 1."""
    from scipy.stats import rankdata

    middle = np.nanmedian(label)
    rank = (rankdata(np.where(np.isnan(label), middle, label)) - 0.5) / len(label)
    return 2 * rate * rank if rate <= 0.5 else 1 - 2 * (1 - rate) * (1 - rank)


def interval(differences: Tensor, seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences (N,)."""
    from scipy.stats import bootstrap

    values = differences.numpy()
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", random_state=seed)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def relative(drop: float, whole: float) -> float | None:
    """Return the drop as a share of the figure with all modalities; None where that is 0."""
    return drop / whole if whole else None


def _areas(curves: Sequence[Row], whole: float) -> list[Row]:
    """Return the area under the drop over the rate, by mechanism, by the trapezoidal rule."""
    from scipy.integrate import trapezoid

    areas = {
        mechanism: float(trapezoid([row["drop"] for row in rows], [row["rate"] for row in rows]))
        for mechanism, rows in _by_mechanism(curves).items()
    }
    return [{"mechanism": name, "area": area, "relative_area": relative(area, whole)} for name, area in areas.items()]


def _by_mechanism(curves: Sequence[Row]) -> dict[str, list[Row]]:
    names = dict.fromkeys(row["mechanism"] for row in curves)
    return {name: [row for row in curves if row["mechanism"] == name] for name in names}


def _text(headline: str, complete: int, labelled: int, seed: int, repeats: int) -> str:
    return (
        f"Measured on the {complete} of {labelled} labelled samples that have all modalities, so that a difference is "
        f"due to what is removed. {headline} is the lower, the better; drop is its rise, with the 95 % bootstrap "
        "interval of the paired difference. A reference has seen the subset alone in training: another predictor "
        "where one was given, else a linear probe on the frozen encoders of this one. It is what a subset could give; "
        "where it is better than the predictor, the loss is the predictor's and not the data's. No sample loses "
        "all modalities: where a draw removes all, one drawn at random is left in place (spared: such samples a draw; "
        f"removed: the share that was really removed). {repeats} draws each, seeds ({seed}, 0) to ({seed}, "
        f"{repeats - 1})."
    )


def _draw_subsets(axes: Axes, *, rows: Sequence[Row], headline: str, nothing: float) -> None:
    places = np.arange(len(rows))
    axes.barh(places, [row[headline] for row in rows], color="tab:blue", label="predictor")
    axes.plot([row[f"reference_{headline}"] for row in rows], places, "k|", ms=8, label="trained on the subset alone")
    axes.axvline(nothing, color="0.5", ls="--", label="mean predictor")
    axes.set_yticks(places, [row["modalities"] for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set(xlabel=headline)
    axes.legend(fontsize=7)


def _draw_rates(axes: Axes, *, rows: Sequence[Row], headline: str) -> None:
    for mechanism, chosen in _by_mechanism(rows).items():
        axes.errorbar(
            [r["rate"] for r in chosen], [r[headline] for r in chosen], [r["std"] for r in chosen],
            marker="o", capsize=3, label=mechanism,
        )  # fmt: skip
    axes.set(xlabel="share of the modalities removed", ylabel=headline)
    axes.legend(fontsize=7)
