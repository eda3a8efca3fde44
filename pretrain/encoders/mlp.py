"""Perceptrons of any depth, for encoders of vectors, tables and frozen texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

Activation = Literal["gelu", "relu", "silu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


def perceptron(
    widths: Sequence[int], activation: Activation = "gelu", dropout: float = 0.0, *, norm: bool = False
) -> nn.Sequential:
    """Return linear maps between successive ``widths``; all but the last with (layer norm,) activation and dropout.

    Dropout is there at a rate of 0 too: the names of the weights must not depend on it, since a model may start from
    one that was trained with another.
    """
    layers: list[nn.Module] = []
    for first, second in pairwise(widths):
        if layers:
            layers += [*([nn.LayerNorm(first)] if norm else []), ACTIVATIONS[activation](), nn.Dropout(dropout)]
        layers.append(nn.Linear(first, second))
    return nn.Sequential(*layers)
