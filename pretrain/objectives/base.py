"""The objective contract: the global batch of embeddings in, one loss out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from shards.errors import ConfigError, suggest
from shards.plugins import Options, Registry

Logs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """The embeddings of the global batch, the same on every rank, with gradient.

    Attributes
    ----------
    z : mapping of str to Tensor
        (B, D) embeddings by name, not normalised; rows of absent samples may hold anything.
    present : mapping of str to Tensor
        (B,) bool.
    local : slice
        This rank's rows.
    world : int
        Number of ranks.
    groups : Tensor, optional
        (B,) int64, equal for records of one physical sample; given to an objective that says `needs_groups`.
    """

    z: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    local: slice
    world: int = 1
    groups: Tensor | None = None


class Objective(nn.Module):
    """Base of the objective plug-ins.

    `forward` gets the GLOBAL batch and returns a loss (0-dim, fp32) such that the mean over the ranks is the global
    loss and the mean of the ranks' gradients its gradient, also with an uneven number of valid rows: sum over this
    rank's rows, divided by (valid rows of the global batch / world). Rows that are absent influence nothing, zero
    valid rows give 0 with a graph to every embedding and parameter.

    Parameters
    ----------
    config : Options
        The objective's own ``Config``.
    modalities : sequence of str
        Modalities of the recipe.
    fusions : mapping of str to sequence of str, optional
        The recipe's fusions, each with the modalities that it joins in the end.
    """

    Config: ClassVar[type[Options]] = Options
    needs_groups: bool = False

    def __init__(
        self, config: Any, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        self.config, self.modalities = config, tuple(modalities)
        self.fusions = {name: tuple(parts) for name, parts in (fusions or {}).items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Embeddings that `forward` reads, in the grammar of `pretrain.names`; by default modalities, then fusions."""
        return (*self.modalities, *self.fusions)

    @property
    def anchors(self) -> set[str]:
        """Embeddings that all others are compared with, by this objective or one that it sums."""
        objectives = [part for part in self.modules() if isinstance(part, Objective)]
        return {each.config.anchor for each in objectives if hasattr(each.config, "anchor")}

    def sized(self, dim: int) -> None:
        """Make what depends on the width D of the embeddings, buffers of a model of them; called once, when built."""

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """Return this rank's share of the loss, and detached values to log whose mean over the ranks is meant."""
        raise NotImplementedError

    def known(self, name: str, *, where: str) -> str:
        """Return the name of a modality or fusion, or raise `ConfigError` with a suggestion."""
        names = (*self.modalities, *self.fusions)
        if name not in names:
            raise ConfigError(
                f"'{name}' is no modality and no fusion of the recipe", where=where, why=suggest(name, names)
            )
        return name

    def fused(self, name: str, *, where: str = "objective.fusion") -> str:
        """Return the name of a fusion, or raise `ConfigError`."""
        if name not in self.fusions:
            raise ConfigError(
                f"'{name}' is no fusion of the recipe",
                where=where,
                why=suggest(name, self.fusions) if self.fusions else "the recipe has none",
                do=f'add a table [fusions.{name}] with a kind, such as kind = "token_transformer"',
            )
        return name


OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    {
        "anchored": "pretrain.objectives.pairs",
        "all_pairs": "pretrain.objectives.pairs",
        "comm": "pretrain.objectives.comm",
        "cross_self": "pretrain.objectives.comm",
        "frozen_anchor": "pretrain.objectives.pairs",
        "fused_anchor": "pretrain.objectives.pairs",
        "weighted_sum": "pretrain.objectives.weighted",
        "tensor": "pretrain.objectives.tensor",
        "gram": "pretrain.objectives.gram",
        "symile": "pretrain.objectives.symile",
        "calmrl": "pretrain.objectives.calmrl",
    },
)
