"""The contract of pair losses: two embeddings of the same samples in, one loss out; objectives sum them over pairs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.objectives.base import GlobalBatch, Logs
from pretrain.objectives.streaming import CHUNK, Region
from shards.errors import ConfigError
from shards.plugins import Options, Registry


class PairLoss(nn.Module):
    """Base of the pair losses.

    `forward` gives a share that keeps the rule of `pretrain.objectives.base.Objective`: the mean over the ranks is the
    loss over all valid rows. Valid are the rows where both embeddings exist, as positives and negatives alike.

    Attributes
    ----------
    tempered : bool
        It reads the logit scale.
    needs_groups : bool
        It reads the batch's groups.
    """

    Config: ClassVar[type[Options]] = Options
    tempered: ClassVar[bool] = True
    needs_groups: bool = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.needs_groups = getattr(config, "mask_same_group", False)

    def forward(
        self, a_BD: Tensor, b_BD: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch
    ) -> tuple[Tensor, Logs]:
        """Return this rank's share, 0-dim float32, and detached values to log.

        Parameters
        ----------
        a_BD, b_BD : Tensor
            (B, D) global embeddings, not normalised; rows that are not valid may hold anything.
        valid : Tensor
            (B,) bool.
        scale : Tensor
            (1,) logit scale.
        batch : GlobalBatch
            This rank's rows, the number of ranks, the groups.
        """
        raise NotImplementedError


class _PairLosses(Registry[type[PairLoss]]):
    """A registry whose group of entry points has an English plural, ``matloom.pair_losses``."""

    def _entry_points(self) -> list[Any]:
        return list(entry_points(group="matloom.pair_losses"))


PAIR_LOSSES = _PairLosses(
    "pair loss",
    {
        "barlow": "pretrain.objectives.barlow",
        "infonce": "pretrain.objectives.infonce",
        "ntxent": "pretrain.objectives.ntxent",
        "siglip": "pretrain.objectives.siglip",
    },
)


class StreamedOptions(Options):
    """What the losses over a matrix of similarities take.

    Attributes
    ----------
    mask_same_group : bool
        Records of one physical sample are no negatives of each other.
    mask_above : float, optional
        A negative that is too similar to the positive is dropped: sample j, as a candidate in modality b for sample
        i, where the cosine of b_j and b_i exceeds this (likely the same material; `siglip`, which compares a pair
        once, drops it where either modality says so). Take it near 1: collapsed embeddings have no negatives left.
    chunk : int
        Rows of the matrix that are held at a time; the memory grows with it, the loss does not depend on it.
    """

    mask_same_group: bool = False
    mask_above: float | None = Field(None, gt=0, lt=1)
    chunk: int = Field(CHUNK, gt=0)

    def criteria(self, batch: GlobalBatch) -> dict[str, Any]:
        """Return what says which candidates count, as keywords of the functional forms of the losses."""
        assert not self.mask_same_group or batch.groups is not None
        groups = batch.groups if self.mask_same_group else None
        return {"groups": groups, "above": self.mask_above, "chunk": self.chunk}


def plugin_options(registry: Registry[Any], value: Any) -> Any:
    """Validate a plug-in's table, or its bare kind, within another plug-in's options."""
    if isinstance(value, Options):
        return value
    try:
        if isinstance(value, str):
            return registry.options({registry.key: value})
        if isinstance(value, Mapping):
            return registry.options(value)
    except ConfigError as error:
        text = f"{error.what} ({error.why})" if error.why else error.what
        raise PydanticCustomError("plugin", "{text}", {"text": text}) from None
    raise PydanticCustomError("plugin", "neither a kind nor a table")


PairLossOptions = Annotated[
    SerializeAsAny[Options],
    BeforeValidator(lambda value: plugin_options(PAIR_LOSSES, value)),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}], "description": "a pair loss: kind, or table"}),
]


class Compared(NamedTuple):
    """The valid rows of two embeddings.

    Attributes
    ----------
    x, y : Tensor
        (N, D) float32.
    region : Region
        This rank's among them, and which candidates count.
    """

    x: Tensor
    y: Tensor
    region: Region

    @property
    def mine(self) -> int:
        """Number of this rank's rows."""
        return self.region.size

    def nothing(self, *parameters: Tensor) -> Tensor:
        """Return 0 with a graph to the embeddings and parameters."""
        return sum((tensor.sum() for tensor in parameters), self.x.sum() + self.y.sum()) * 0.0


def compared(
    a_BD: Tensor,
    b_BD: Tensor,
    valid: Tensor,
    *,
    local: slice,
    groups: Tensor | None = None,
    unit: bool = True,
    **criteria: Any,
) -> Compared:
    """Select the valid rows, of unit length by default; what the others hold, NaN included, influences nothing."""
    rows = valid.nonzero().squeeze(1)
    x, y = (each[rows].float() for each in (a_BD, b_BD))
    if unit:
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    # the rows are in order, so this rank's lie together
    first, last = int(valid[: local.start].sum()), int(valid[: local.stop].sum())
    mine = slice(first, last)
    return Compared(x, y, Region(mine=mine, groups=None if groups is None else groups[rows], **criteria))
