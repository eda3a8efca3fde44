"""Pretrained models with random weights, as pretraining exports them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pretrain.config import Recipe
from pretrain.export import write_export
from pretrain.model import MultimodalModel
from pretrain.parts import fit_encoders
from shards.reader import Dataset
from shards.schema import Sample


def write_model(
    folder: Path,
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int = 0,
    samples: Iterable[Sample] | None = None,
    **about: Any,
) -> Path:
    """Write a model of a data set, of which its encoders are fitted to all samples or to some; return its folder.

    ``about`` is what it says of its data, see `pretrain.export.write_export`; by default that it is none of the tests'.
    """
    seen = dataset if samples is None else list(samples)
    fitted = fit_encoders(
        recipe, dataset.modalities, lambda name: (s.value(name) for s in seen if name in s.modalities)
    )
    torch.manual_seed(seed)
    model = MultimodalModel(recipe, dataset.modalities, fitted)
    known: dict[str, Any] = {"data_name": "x", "data_sha256": "0", "data_contents": [], "validation": [], **about}
    write_export(folder, model, recipe, fitted, step=1, **known)
    return folder
