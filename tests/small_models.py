"""Small models over vectors: encoders of EQUAL size, so that a rank that is out of step mixes gradients up silently."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from pretrain.config import Recipe, parse_recipe
from pretrain.model import MultimodalModel
from pretrain.names import SECOND, alone, second
from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Objective
from pretrain.objectives.infonce import info_nce
from pretrain.objectives.temperature import Temperature, TemperatureConfig
from shards.batch import Batch, collate
from shards.plugins import Options
from shards.schema import FieldSpec, ModalitySpec, Sample

NAMES, WIDTH = ("a", "b", "c"), 6
SPECS = {
    name: ModalitySpec(name=name, kind="vector", fields={"values": FieldSpec(dtype="float32", shape=(WIDTH,))})
    for name in NAMES
}
FITTED = {name: {"mean": [0.0] * WIDTH, "std": [1.0] * WIDTH} for name in NAMES}
JOINT = {"joint": {"kind": "concat", "dim": 5, "inputs": list(NAMES)}}


@OBJECTIVES.register("test_views")
class Views(Objective):
    """Compares two views of a fusion, and what it makes of each modality alone; counts how often it ran."""

    class Config(Options):
        kind: Literal["test_views"] = "test_views"

    calls: torch.Tensor
    needs_groups = True

    def __init__(self, config: Any, modalities: Any, fusions: Any = None) -> None:
        super().__init__(config, modalities, fusions)
        self.temperature = Temperature(TemperatureConfig(init=0.3))
        self.register_buffer("calls", torch.zeros(1))

    @property
    def names(self) -> tuple[str, ...]:
        first = ("joint", *(alone("joint", name) for name in self.modalities))
        return (*first, *map(second, first))

    def forward(self, batch: GlobalBatch) -> Any:
        self.calls += self.training
        assert batch.groups is not None
        losses = [
            info_nce(
                batch.z[name], batch.z[second(name)], batch.present[name] & batch.present[second(name)],
                scale=self.temperature(), local=batch.local, world=batch.world,
            )
            for name in self.names
            if not name.endswith(SECOND)
        ]  # fmt: skip
        return torch.stack(losses).sum(), {"temperature": 1 / self.temperature().detach()[0]}


def recipe(objective: str = "anchored", *, dropout: float = 0.0, learn: bool = True, **tables: Any) -> Recipe:
    """Three equal encoders; ``tables`` are merged into the recipe's. ``learn``: the temperature."""
    encoder = {"kind": "vector", "hidden": 8, "dim": 6, "dropout": dropout}
    table: dict[str, Any] = {"kind": objective}
    if objective == "anchored":
        table |= {"anchor": "a", "temperature": {"init": 0.3, "learn": learn}}
    modalities = {name: {"encoder": encoder, **tables.pop(name, {})} for name in NAMES}
    optim = {
        "lr": 1e-2,
        "epochs": 1,
        "warmup_epochs": 0,
        "precision": "fp32",
        "grad_clip": 0.0,
        **tables.pop("optim", {}),
    }
    return parse_recipe(
        {
            "name": "small", "data": {"path": "none", "batch_size": 12}, "modalities": modalities,
            "projection": {"dim": 5}, "objective": table, "optim": optim,
            **({"fusions": JOINT} if objective == "test_views" else {}), **tables,
        },
        where="test",
    )  # fmt: skip


def model(config: Recipe, seed: int = 0, autocast: torch.dtype | None = None) -> MultimodalModel:
    torch.manual_seed(seed)
    return MultimodalModel(config, SPECS, FITTED, autocast)


def samples(rows: int, seed: int = 0, share: float = 0.75, absent: str = "") -> list[Sample]:
    """Samples of which each modality is there with probability ``share``; of group 0 or more."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        names = [name for name in NAMES if rng.random() < share and name not in absent]
        values = {name: {"values": rng.normal(size=WIDTH).astype(np.float32)} for name in names}
        found.append(Sample(id=str(row), arrays=values))
    return found


def batch(parts: list[Sample], seed: int = 1) -> Batch:
    """The samples, and as their second view the same with noise."""
    rng = np.random.default_rng(seed)
    noisy = [
        replace(
            sample,
            arrays={
                name: {"values": (value["values"] + rng.normal(size=WIDTH)).astype(np.float32)}
                for name, value in sample.arrays.items()
            },
        )
        for sample in parts
    ]
    groups = torch.arange(len(parts))
    first, twin = (replace(collate(rows, SPECS), groups=groups) for rows in (parts, noisy))
    return replace(first, twin=twin)
