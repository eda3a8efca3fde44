"""Perceptrons of any depth, for encoders of vectors, tables and frozen texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

Activation = Literal["gelu", "relu", "silu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


def perceptron(widths: Sequence[int], activation: Activation = "gelu", dropout: float = 0.0) -> nn.Sequential:
    """Return linear maps between successive ``widths``, with activation (and dropout) after all but the last."""
    layers: list[nn.Module] = []
    for first, second in pairwise(widths):
        if layers:
            layers += [ACTIVATIONS[activation](), *([nn.Dropout(dropout)] if dropout else [])]
        layers.append(nn.Linear(first, second))
    return nn.Sequential(*layers)
