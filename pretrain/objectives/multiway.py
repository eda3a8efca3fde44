"""What objectives over more than pairs share: which embeddings they align, and sums over rows in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pretrain.objectives.base import Objective
from pretrain.objectives.temperature import Temperature, TemperatureConfig
from shards.errors import ConfigError
from shards.plugins import Options


class MultiwayOptions(Options):
    """What every objective over a whole tuple of embeddings takes.

    Attributes
    ----------
    inputs : tuple of str
        Modalities and fusions that are aligned; none given: all of the recipe.
    chunk : int
        Rows whose logits are held at once; the others' are computed again in the backward pass.
    temperature : TemperatureConfig
        One for all; there are no pairs that could have their own.
    """

    inputs: tuple[str, ...] = ()
    chunk: int = Field(64, gt=0)
    temperature: TemperatureConfig = TemperatureConfig()


class Multiway(Objective):
    """An objective over tuples of ``inputs``; a subclass says how many there may be."""

    least, most = 2, 2**16

    def __init__(
        self, config: Any, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        names = config.inputs or (*self.modalities, *self.fusions)
        self.inputs = tuple(self.known(name, where="objective.inputs") for name in dict.fromkeys(names))
        if not self.least <= len(self.inputs) <= self.most:
            wanted = f"exactly {self.least}" if self.least == self.most else f"at least {self.least}"
            raise ConfigError(
                f"objective '{config.kind}' aligns {wanted} embeddings, here are {len(self.inputs)}",
                where="objective.inputs",
                why=", ".join(self.inputs),
                do="name them: inputs = [...]",
            )
        if config.temperature.per_pair:
            raise ConfigError(
                f"objective '{config.kind}' compares no pairs, and has one temperature",
                where="objective.temperature.per_pair",
            )
        self.temperature = Temperature(config.temperature)

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs."""
        return self.inputs


def unit(z_BD: Tensor, rows: Tensor) -> Tensor:
    """Return the chosen rows (n, D) as float32 unit vectors; what the others hold, is not looked at."""
    return F.normalize(z_BD[rows].float(), dim=1)


def positions(mask: Tensor) -> Tensor:
    """Return where a mask (B,) is true, (n,) int64."""
    return mask.nonzero().squeeze(1)


def of_rank(rows: Tensor, local: slice) -> Tensor:
    """Return where, among global row numbers (n,), those of this rank stand."""
    return positions((rows >= local.start) & (rows < local.stop))


def summed(term: Callable[[Tensor], Tensor], rows: Tensor, chunk: int) -> Tensor:
    """Sum ``term(rows)``, 0-dim, over chunks of row numbers (n,); one chunk's intermediates are held at once."""
    if len(rows) <= chunk:
        return term(rows)
    parts = [checkpoint(term, part, use_reentrant=False, preserve_rng_state=False) for part in rows.split(chunk)]
    return torch.stack(parts).sum()


def touched(*tensors: Tensor) -> Tensor:
    """Return 0 with a graph to all tensors, 0-dim: every rank's backward pass must reach every parameter."""
    return 0.0 * torch.stack([tensor.float().sum() for tensor in tensors]).sum()
