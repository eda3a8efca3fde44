"""A data set whose label is linear in its modalities, and predictors of it that are linear by construction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from finetune.loading import PropertyModel
from finetune.prediction import Prediction
from finetune.predictor import PredictorInfo
from pretrain.encoders.base import Encoded
from shards.augment import Augmenter
from shards.batch import Batch
from shards.build import SplitPlan, build
from shards.reader import Dataset
from shards.schema import ModalitySpec, Value
from shards.sources.base import Record
from tests.synthetic import FEATURES, WIDTH, ToyVector, generator, hidden

LABEL = "y_ev"
# what `left` says of the label, the label in another unit, and a class that takes both modalities; not of all samples
ROUGH, PRESSURE, QUADRANT = "rough_ev", "y_gpa", "quadrant"
GROUPS = {"cubic": "Pm-3m", "hexagonal": "P6_3/mmc"}


class Part(ToyVector):
    """``left`` sees two of the four hidden numbers, ``right`` the others, ``copy`` what left sees, ``junk`` nothing."""

    step: Literal["left", "right", "copy", "junk"]

    def view(self, cause: np.ndarray, rng: np.random.Generator) -> Value:
        seen = cause[2:] if self.step == "right" else cause[:2]
        values = np.array([seen[0], 10 * seen[1], seen[0] - seen[1], 0.0, 0.0, 0.0])
        values = rng.normal(size=WIDTH) if self.step == "junk" else values
        return {"values": values.astype(np.float32)}


def label(sample_id: str) -> float:
    return float(hidden(sample_id) @ [1.0, 2.0, -1.5, 0.5])


def records(count: int) -> Iterator[Record]:
    for i in range(count):
        name = f"m{i}"
        cause = hidden(name)
        side = "cubic" if cause[0] > 0 else "hexagonal"
        tags = {
            "side": side,
            "spacegroup": GROUPS[side],
            "coin": str(generator("coin", name).integers(2)),
            "chemical_system": name,
        }
        labels = {LABEL: label(name), "is_metal": float(cause[1] > 0)}
        labels[QUADRANT] = float(cause[0] > 0) + 2 * float(cause[2] > 0)
        if i % 7:
            labels[ROUGH] = float(cause[:2] @ [1.0, 2.0])
        if i % 5:
            labels[PRESSURE] = 100 * label(name)
        yield Record(id=name, labels=labels, tags=tags)


def build_linear(folder: Path, count: int = 400) -> Dataset:
    features: dict[str, Any] = {name: FEATURES[name] for name in "abc"}
    features |= {step: Part(step=step) for step in ("left", "right", "copy", "junk")}
    fractions = {"train": 0.5, "val": 0.25, "test": 0.25}
    splits = {
        "chemical_system": SplitPlan(by="chemical_system", fractions=fractions),
        "extremes": SplitPlan(by="top_quantile", label=LABEL, quantile=0.1, fractions=fractions),
    }
    build(records(count), features, folder, name="linear", splits=splits)
    return Dataset(folder)


class Identity(nn.Module):
    dim = WIDTH

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        return Encoded(inputs["values"])


# y = x . w, exactly
WEIGHTS = {
    "left": np.array([1.0, 0.2, 0, 0, 0, 0]),
    "right": np.array([-1.5, 0.05, 0, 0, 0, 0]),
    "copy": np.array([1.0, 0.2, 0, 0, 0, 0]),
    "junk": np.full(WIDTH, 0.01),
}


class Linear(nn.Module):
    """Adds up groups of modalities; of a group, the mean over those that are there; 0 where none is."""

    def __init__(self, groups: Sequence[Sequence[str]], bias: float = 0.0) -> None:
        super().__init__()
        self.groups, self.bias = groups, nn.Parameter(torch.tensor(bias), requires_grad=False)
        self.featurizer = SimpleNamespace(encoders={name: Identity() for group in groups for name in group})

    def predict(self, batch: Batch) -> Prediction:
        total = self.bias.expand(len(batch.ids)).clone()
        for group in self.groups:
            values = torch.zeros(len(group), len(batch.ids))
            there = torch.stack([batch.present[name] for name in group])
            for i, name in enumerate(group):
                if name in batch.inputs:
                    rows = batch.inputs[name]["values"]
                    assert isinstance(rows, Tensor)
                    values[i, there[i]] = rows @ torch.from_numpy(WEIGHTS[name]).float()
            total += values.sum(0) / there.sum(0).clamp(min=1)
        return Prediction(total[:, None])


def info_of(target: str, task: str, modalities: Sequence[str]) -> PredictorInfo:
    return PredictorInfo(
        targets=(target,), task=task, modalities=tuple(modalities), head={}, foundation="none", foundation_seal="",
        strategy="by construction", metrics={},
    )  # fmt: skip


def linear_model(dataset: Dataset, groups: Sequence[Sequence[str]], *, predictor: Any = None) -> PropertyModel:
    names = [name for group in groups for name in group]
    specs: dict[str, ModalitySpec] = {name: dataset.modalities[name] for name in names}
    return PropertyModel(
        info_of(LABEL, "regression", names), predictor or Linear(groups), specs, Augmenter(specs, {}, training=False)
    )
