"""How fast a predictor's error grows with noise on its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from matplotlib.axes import Axes
from pydantic import Field, field_validator
from torch import Tensor

from finetune.evaluations.base import EVALUATIONS, Evaluation, Findings, Subject
from finetune.evaluations.rows import Measure, Rows, classes, predictor_of, rows_of
from finetune.loading import PropertyModel
from pretrain.plots import Row
from shards.errors import DataError
from shards.schema import ModalitySpec, Sample

Scales = dict[str, dict[str, np.ndarray]]
ALL = "all"


@EVALUATIONS.register("noise")
class Noise(Evaluation):
    """Gaussian noise of ``sigma`` times each feature's standard deviation in training, on one modality or on all.

    Attributes
    ----------
    sigmas : tuple of float
        In units of the training standard deviation; the first is 0, the plain evaluation.
    repeats : int
        Draws for each; draw r uses the seed (seed, r).
    most : int
        Rows that are looked at, the first of the part in the order of the data set.
    """

    wants: ClassVar[type] = PropertyModel

    kind: Literal["noise"] = "noise"
    sigmas: tuple[float, ...] = Field((0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), min_length=3)
    repeats: int = Field(10, ge=1)
    most: int = Field(1000, ge=2)

    @field_validator("sigmas")
    @classmethod
    def _ascend(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        if sigmas[0] != 0 or list(sigmas) != sorted(set(sigmas)):
            raise ValueError("sigmas must ascend from 0")
        return sigmas

    def __call__(self, subject: Subject) -> Findings:
        """Measure every modality that has numbers, then all together."""
        model = predictor_of(subject)
        rows = rows_of(subject, subject.part)
        rows = rows.at(list(range(min(self.most, len(rows.samples)))))
        train = subject.dataset.select(list(model.specs))
        scales = training_scales(model.specs, (train[int(i)] for i in train.positions(subject.split, "train")))
        if not scales:
            raise DataError("the predictor looks at nothing that is a number: there is nothing to add noise to")
        measure = Measure.of(model, partial(rows_of, subject, "train"))
        headline, targets = measure.headline, [[name] for name in scales]
        if len(scales) > 1:
            targets.append(list(scales))
        table: list[Row] = []
        for names in targets:
            chosen = {name: scales[name] for name in names}
            table += self._rows(model, measure, rows, chosen, ALL if len(names) > 1 else names[0], subject.seed)
        slopes = [_slope(group, headline) for group in _by_modality(table).values()]
        silent = [name for name in model.specs if name not in scales]
        return Findings(
            title=f"Noise on the inputs: {', '.join(model.info.targets)} on part '{subject.part}'",
            text=measure.text + _text(headline, len(rows.samples), self.repeats, subject.seed, silent),
            values={f"slope/{row['modality']}": row["slope"] for row in slopes if row["slope"] is not None}
            | {f"doubling/{row['modality']}": row["doubling_sigma"] for row in slopes if row["doubling_sigma"]},
            tables={"noise": table, "slopes": slopes},
            plots={"noise": partial(_draw, rows=table, headline=headline)},
        )

    def _rows(
        self, model: PropertyModel, measure: Measure, rows: Rows, scales: Scales, name: str, seed: int
    ) -> list[Row]:
        """Measure one set of modalities at every sigma."""
        plain = model.estimate(rows.samples).value
        table: list[Row] = []
        for sigma in self.sigmas:
            values = [
                noisy_values(model, rows.samples, scales, sigma, seed=(seed, draw))
                for draw in range(self.repeats if sigma else 1)
            ]
            found = [measure.metrics(value, rows.targets) for value in values]
            row = {"modality": name, "sigma": sigma, "repeats": len(values), "n": len(rows.samples)}
            for metric in found[0]:
                column = [one[metric] for one in found]
                row |= {metric: float(np.mean(column)), f"{metric}_std": float(np.std(column))}
            if measure.task != "regression":
                flips = [
                    float((classes(measure.task, v) != classes(measure.task, plain)).float().mean()) for v in values
                ]
                row["flips"] = float(np.mean(flips))
            table.append(row)
        return table


def training_scales(specs: Mapping[str, ModalitySpec], samples: Iterable[Sample]) -> Scales:
    """Return the standard deviation of every number in training, by modality and field.

    It has the shape of the field; over a ragged axis it is of length 1, the elements together. Integers (atomic
    numbers, edges) and texts have none: noise would make other things of them.
    """
    fields = {
        (name, field): spec.fields[field]
        for name, spec in specs.items()
        for field in spec.fields
        if np.dtype(spec.fields[field].dtype).kind == "f" and spec.fields[field].index_of is None
    }
    sums: dict[tuple[str, str], list[np.ndarray]] = {}
    for sample in samples:
        for (name, field), spec in fields.items():
            if name not in sample.arrays:
                continue
            array, axis = sample.arrays[name][field].astype(np.float64), spec.ragged_axis
            array = array[None] if axis is None else np.moveaxis(array, axis, 0)
            found = [np.array(len(array)), array.sum(0), (array**2).sum(0)]
            known = sums.get((name, field))
            sums[name, field] = found if known is None else [a + b for a, b in zip(known, found, strict=True)]
    scales: Scales = {}
    for (name, field), (count, total, squares) in sums.items():
        std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0))
        axis = fields[name, field].ragged_axis
        scales.setdefault(name, {})[field] = std if axis is None else np.expand_dims(std, axis)
    return scales


def noisy_values(
    model: PropertyModel, samples: Sequence[Sample], scales: Scales, sigma: float, *, seed: tuple[int, int]
) -> Tensor:
    """Return the values (N, T) for samples of which the modalities of ``scales`` carry noise; sigma 0 adds none."""
    rng = np.random.default_rng(seed)
    return model.estimate([noisy(sample, scales, sigma, rng) for sample in samples] if sigma else samples).value


def noisy(sample: Sample, scales: Scales, sigma: float, rng: np.random.Generator) -> Sample:
    """Add N(0, (sigma * scale)^2) to every number of some modalities, in the precision in which it is stored."""
    arrays = dict(sample.arrays)
    for name in scales.keys() & arrays.keys():
        arrays[name] = dict(arrays[name])
        for field, scale in scales[name].items():
            value = arrays[name][field]
            arrays[name][field] = (value + sigma * scale * rng.normal(size=value.shape)).astype(value.dtype)
    return replace(sample, arrays=arrays)


def slope_of(sigmas: Sequence[float], figures: Sequence[float]) -> float | None:
    """Return d log(figure) / d sigma by least squares; None where a figure is not positive."""
    if min(figures) <= 0:
        return None
    return float(np.polyfit(sigmas, np.log(figures), 1)[0])


def doubling_of(sigmas: Sequence[float], figures: Sequence[float]) -> float | None:
    """Return the sigma at which the figure first is twice that at sigma 0, interpolated linearly; None: it never is."""
    goal = 2 * figures[0]
    for i in range(1, len(sigmas)):
        low, high = figures[i - 1], figures[i]
        if low < goal <= high:
            return float(sigmas[i - 1] + (goal - low) / (high - low) * (sigmas[i] - sigmas[i - 1]))
    return None


def _slope(rows: Sequence[Row], headline: str) -> Row:
    sigmas, figures = [row["sigma"] for row in rows], [row[headline] for row in rows]
    doubling = doubling_of(sigmas, figures) if figures[0] > 0 else None
    return {"modality": rows[0]["modality"], "slope": slope_of(sigmas, figures), "doubling_sigma": doubling}


def _by_modality(table: Sequence[Row]) -> dict[str, list[Row]]:
    names = dict.fromkeys(row["modality"] for row in table)
    return {name: [row for row in table if row["modality"] == name] for name in names}


def _text(headline: str, count: int, repeats: int, seed: int, silent: Sequence[str]) -> str:
    text = (
        f"{count} rows; {repeats} draws for each sigma, seeds ({seed}, 0) to ({seed}, {repeats - 1}). Every number is "
        "moved on its own by sigma standard deviations that it has in training, so that a crystal's coordinates, "
        f"lattice and edge vectors no longer agree with each other. slope: d log({headline}) / d sigma; "
        f"doubling_sigma: where {headline} is twice that without noise, empty where it is not within the range."
    )
    return f"{text} Without noise, as they hold no numbers: {', '.join(silent)}." if silent else text


def _draw(axes: Axes, *, rows: Sequence[Row], headline: str) -> None:
    for name, group in _by_modality(rows).items():
        axes.errorbar(
            [row["sigma"] for row in group], [row[headline] for row in group],
            [row[f"{headline}_std"] for row in group], marker="o", capsize=3, label=name,
        )  # fmt: skip
    axes.set(xlabel="noise / standard deviation in training", ylabel=headline)
    axes.legend(fontsize=7)
