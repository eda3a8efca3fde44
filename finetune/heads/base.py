"""The head contract: features in, predictions in the targets' units out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from finetune.prediction import Prediction
from shards.plugins import Options, Registry


class Head(nn.Module):
    """Base of the head plug-ins.

    ``forward`` maps features (B, F) to raw outputs, whose first axis is B, `loss` compares raw outputs with targets
    (B, T), of which any may be unknown (NaN), and ``predict`` turns raw outputs into what a user wants. What depends
    on the training data is fitted by ``fit`` and kept in buffers, so that it travels with the weights.

    Parameters
    ----------
    config : Options
        The head's own ``Config``.
    width : int
        Number of features F.
    targets : tuple of str
        Names of the T targets, with their units.

    Attributes
    ----------
    task : str
        ``regression``, ``classification`` (values are probabilities of class 1, a target a column) or ``multiclass``
        (one target, whose values are class numbers 0 .. C - 1).
    partners : int
        2: ``forward`` reads features (B, 2, F) of pairs.
    keeps_rows : bool
        Whether ``fit`` keeps features of training rows, which must not change afterwards.
    """

    Config: ClassVar[type[Options]] = Options
    task: ClassVar[str]
    partners: ClassVar[int] = 1
    keeps_rows: ClassVar[bool] = False

    def __init__(self, config: Any, width: int, targets: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.targets = config, targets

    @classmethod
    def parts_of(cls, shape: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
        """Return which components of a target of some shape are predicted, in the order of the head's targets."""
        return list(np.ndindex(shape))

    @classmethod
    def further_metrics(cls, config: Any, predictions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return what the table says of test predictions (N, T) beside the usual metrics, of whatever made them."""
        return {}

    def grouped(self, groups: Sequence[str]) -> None:
        """Learn which of the N training rows that `fit` will get belong together, where the head keeps rows."""

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Learn scales (and anchors) from the TRAINING targets (N, T) with NaN where unknown.

        ``features`` (N, F) are those of the same rows where they do not change: under frozen encoders.
        """

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the known entries of ``targets`` (B, T); 0 with a graph where none is."""
        known = ~targets.isnan()
        return self.compare(raw, targets.nan_to_num(), known) if known.any() else raw.sum() * 0.0

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the mean loss over the entries where ``known`` (B, T) is True; there is at least one."""
        raise NotImplementedError

    def predict(self, raw: Tensor) -> Prediction:
        """Return predictions for B rows."""
        raise NotImplementedError


class MlpOptions(Options):
    """Hidden layers of a head; 0 layers make it linear."""

    hidden: int = Field(128, gt=0)
    layers: int = Field(1, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)


def mlp(width: int, config: MlpOptions, outputs: int = 1) -> nn.Sequential:
    """Return LayerNorm, ``layers`` hidden layers with GELU and dropout, and ``outputs`` outputs."""
    modules: list[nn.Module] = [nn.LayerNorm(width)]
    for _ in range(config.layers):
        modules += [nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
        width = config.hidden
    return nn.Sequential(*modules, nn.Linear(width, outputs))


HEADS: Registry[type[Head]] = Registry(
    "head",
    {
        "regression": "finetune.heads.regression",
        "linear": "finetune.heads.linear",
        "classification": "finetune.heads.classification",
        "multiclass": "finetune.heads.multiclass",
        "gaussian": "finetune.heads.gaussian",
        "quantile": "finetune.heads.quantile",
        "tensor": "finetune.heads.tensor",
        "spectrum": "finetune.heads.spectrum",
        "pair": "finetune.heads.pair",
        "pair_classification": "finetune.heads.pair",
        "bilinear_transduction": "finetune.heads.bilinear_transduction",
        "conditional_posterior": "finetune.heads.conditional_posterior",
        "retrieval_augmented": "finetune.heads.retrieval_augmented",
    },
)
