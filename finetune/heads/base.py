"""The head contract: features in, predictions in the target's unit out."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from shards.plugins import Options, Registry


class Head(nn.Module):
    """Base of the head plug-ins.

    ``forward`` maps features (B, F) to raw outputs, ``compare`` takes the loss of raw outputs against
    known targets, and ``predict`` turns raw outputs into what a user wants. What depends on the training targets is
    fitted by ``fit`` and kept in buffers, so that it travels with the weights.

    Parameters
    ----------
    config : Options
        The head's own ``Config``.
    width : int
        Number of features F.
    """

    Config: ClassVar[type[Options]] = Options
    task: ClassVar[str]

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.config = config

    def fit(self, targets: Tensor) -> None:
        """Learn scales from the TRAINING targets (N,)."""

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the rows whose target is not NaN; 0 with a graph where none is."""
        known = ~targets.isnan()
        return self.compare(raw[known], targets[known]) if known.any() else raw.sum() * 0.0

    def compare(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over rows that all have a target."""
        raise NotImplementedError

    def predict(self, raw: Tensor) -> Tensor:
        """Return predictions (B,)."""
        raise NotImplementedError


class MlpOptions(Options):
    """Hidden layers of a head; 0 layers make it linear."""

    hidden: int = 128
    layers: int = 1
    dropout: float = 0.1


def mlp(width: int, config: MlpOptions) -> nn.Sequential:
    """Return LayerNorm, ``layers`` hidden layers with GELU and dropout, and one output."""
    modules: list[nn.Module] = [nn.LayerNorm(width)]
    for _ in range(config.layers):
        modules += [nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
        width = config.hidden
    return nn.Sequential(*modules, nn.Linear(width, 1))


HEADS: Registry[type[Head]] = Registry(
    "head", {"regression": "finetune.heads.regression", "classification": "finetune.heads.classification"}
)
