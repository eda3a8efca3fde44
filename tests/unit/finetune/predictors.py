"""Small predictors for the adaptations: encoders with tokens, an encoder with batch statistics, rows that lack any."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import torch
from torch import nn

from finetune.adapt.base import ADAPTATIONS, Adaptation
from finetune.config import FinetuneOptim
from finetune.featurizer import Featurizer, SideBySide
from finetune.heads.base import HEADS
from finetune.predictor import Predictor
from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from shards.batch import Batch, collate
from shards.plugins import Options
from tests import fused_models
from tests.fused_models import FITTED, POINTS, SPECS

OPTIM = FinetuneOptim(lr=0.05, encoder_lr=0.02)


@ENCODERS.register("test_batch_norm")
class WithStatistics(Encoder):
    """Two stages with batch normalisation, which no encoder of the project has, but others' may."""

    class Config(Options):
        kind: Literal["test_batch_norm"] = "test_batch_norm"

    reads = frozenset({"spectrum", "vector"})

    def __init__(self, spec: Any, config: Any, fitted: Any) -> None:
        super().__init__(spec, config, fitted)
        self.dim = 6
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(POINTS, 8), nn.BatchNorm1d(8), nn.ReLU()),
                nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)),
            ]
        )

    def forward(self, inputs: Any) -> Encoded:
        x = inputs["intensity"]
        for block in self.blocks:
            x = block(x)
        return Encoded(x)


def encoders(*names: str) -> dict[str, Encoder]:
    """``a``, ``b``: transformers with tokens; ``c``: a perceptron; ``n``: batch statistics, over the data of ``c``."""
    found = {}
    for name in names:
        source = "c" if name == "n" else name
        table = {"kind": "test_batch_norm"} if name == "n" else fused_models.ENCODERS[source]
        options = ENCODERS.options(table)
        found[source] = ENCODERS.get(options.kind)(SPECS[source], options, FITTED[source])
    return found


def predictor(
    names: tuple[str, ...] = ("a", "b", "c"), table: dict[str, Any] | None = None, join: Any = None, **head: Any
) -> tuple[Predictor, Adaptation]:
    """A predictor, adapted and in training mode."""
    torch.manual_seed(0)
    adaptation: Adaptation = ADAPTATIONS.options(table or {"kind": "full"})
    featurizer = Featurizer(encoders(*names), adaptation.join() or join or SideBySide)
    options = HEADS.options({"kind": "regression", "hidden": 8, "dropout": 0.0, **head})
    made = Predictor(featurizer, HEADS.get(options.kind)(options, featurizer.width, ("y_ev",)))
    adaptation.insert(made)
    adaptation.prepare(made)
    return made.train(), adaptation


def batch(rows: int = 12, seed: int = 0, share: float = 0.7, names: tuple[str, ...] = ("a", "b", "c")) -> Batch:
    """Rows of which each lacks some modalities."""
    return collate(fused_models.samples(rows, seed, share), {name: SPECS[name] for name in names})


def train(made: Predictor, adaptation: Adaptation, data: Batch, steps: int = 4, epoch: int = 0) -> None:
    """Take some steps towards random targets."""
    optimizer = torch.optim.AdamW(adaptation.groups(made, OPTIM), weight_decay=0.1)
    targets = torch.randn(len(data.ids), 1, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        made.train()
        adaptation.begin_epoch(made, epoch)
        optimizer.zero_grad()
        made.head.loss(made(data), targets).backward()
        optimizer.step()


def digest(module: nn.Module, *without: str) -> str:
    """Hash of every parameter and buffer, but those whose names hold one of ``without``."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        if not any(part in name for part in without):
            found.update(value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else str(value).encode())
    return found.hexdigest()
