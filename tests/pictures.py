"""Pictures for tests: a data set that has them, and an encoder that reads one size only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from shards.batch import Inputs
from shards.build import build
from shards.features import feature
from shards.plugins import Options
from shards.schema import ModalitySpec, Value
from shards.sources.base import Record
from tests.synthetic import FEATURES, SPLITS, generator, records

SIZE, CROP = 12, 8


@ENCODERS.register("flat_image")
class FlatImage(Encoder):
    """The mean over the pictures of a sample, every pixel with a weight of its own: another size is an error."""

    class Config(Options):
        """Width of the vector."""

        kind: Literal["flat_image"] = "flat_image"
        dim: int = 8

    reads = frozenset({"image"})

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        self.register_buffer("centre", torch.tensor(fitted["mean"]))
        pixels = int(np.prod(cast(tuple[int, ...], spec.fields["pixels"].shape[1:])))
        self.linear = nn.Linear(pixels, config.dim)

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Config, values: Iterable[Value]) -> dict[str, Any]:
        rows = np.concatenate([cast(Mapping[str, np.ndarray], value)["pixels"] for value in values])
        assert rows.shape[1:] == spec.fields["pixels"].shape[1:]
        return {"mean": rows.reshape(len(rows), -1).mean(0).tolist()}

    def forward(self, inputs: Inputs) -> Encoded:
        pixels, row = cast(Tensor, inputs["pixels"]), cast(Tensor, inputs["images_row"])
        vectors = self.linear((pixels.flatten(1).float() - self.centre) / 255)
        count = len(cast(Tensor, inputs["images_ptr"])) - 1
        total = vectors.new_zeros(count, self.dim).index_add(0, row, vectors)
        return Encoded(total / torch.bincount(row, minlength=count)[:, None])


def build_pictures(folder: Path, *, count: int = 60) -> None:
    """Build a data set of vectors (``a``) and pictures (``sem``), which a fifth of the samples lack."""

    def with_pictures() -> Iterable[Record]:
        for number, record in enumerate(records(count)):
            rng = generator("sem", record.id)
            pictures = [rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8) for _ in range(1 + number % 3)]
            yield Record(**{**vars(record), "images": pictures if number % 5 else []})

    steps = {"a": FEATURES["a"], "sem": feature({"step": "image", "size": SIZE})}
    build(with_pictures(), steps, folder, name="pictures", splits=SPLITS, shard_samples=16)
