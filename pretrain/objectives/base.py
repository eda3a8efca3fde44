"""The objective contract: the global batch of embeddings in, one loss out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from shards.plugins import Options, Registry


class Objective(nn.Module):
    """Base of the objective plug-ins.

    `forward` gets the GLOBAL batch: ``z[m]`` (B, D) with anything in the rows of absent samples,
    ``present[m]`` (B,) bool, the slice ``local`` of this rank's rows and the number ``world`` of
    ranks. It returns a loss (0-dim, fp32) such that the mean over the ranks is the global loss and
    the mean of the ranks' gradients its gradient, also with an uneven number of valid rows: sum
    over this rank's rows, divided by (valid rows of the global batch / world). Rows that are absent
    influence nothing, zero valid rows give 0 with a graph.

    Parameters
    ----------
    config : Options
        The objective's own ``Config``.
    modalities : sequence of str
        Names of the modalities in z.
    """

    Config: ClassVar[type[Options]] = Options

    def __init__(self, config: Any, modalities: Sequence[str]) -> None:
        super().__init__()
        self.config, self.modalities = config, tuple(modalities)

    def forward(
        self, z: Mapping[str, Tensor], present: Mapping[str, Tensor], local: slice, world: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this rank's share of the loss, and detached values to log."""
        raise NotImplementedError


OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective", {"anchored": "pretrain.objectives.pairs", "all_pairs": "pretrain.objectives.pairs"}
)
