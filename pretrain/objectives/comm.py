"""CoMM and its baseline Cross+Self: two augmented views of every sample are compared (arXiv 2409.07402).

The other baseline, Cross, is CLIP between modalities with a learned temperature: `pretrain.objectives.pairs.AllPairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from pretrain.names import alone, second
from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Logs, Objective
from pretrain.objectives.ntxent import nt_xent
from pretrain.objectives.pair_losses import StreamedOptions
from pretrain.objectives.temperature import Temperature, TemperatureConfig
from shards.errors import ConfigError

Compare = Callable[[str, str], Tensor]


class ViewsOptions(StreamedOptions):
    """What objectives of two views take; the temperature is fixed at 0.1 by default, as published."""

    temperature: TemperatureConfig = TemperatureConfig(learn=False, init=0.1)

    @field_validator("temperature")
    @classmethod
    def _one_for_all(cls, temperature: TemperatureConfig) -> TemperatureConfig:
        if temperature.per_pair:
            raise ValueError("'per_pair' is for sums over pairs of modalities: all terms here share one temperature")
        return temperature


class ViewsObjective(Objective):
    """Base of objectives that sum NT-Xent terms between embeddings of two views."""

    def __init__(
        self, config: ViewsOptions, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        self.needs_groups = config.mask_same_group
        self.temperature = Temperature(config.temperature)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """Return this rank's share of the loss, and each term's share and the temperature to log."""
        scale = self.temperature()

        def compare(a: str, b: str) -> Tensor:
            return nt_xent(
                batch.z[a],
                batch.z[b],
                batch.present[a] & batch.present[b],
                scale=scale,
                local=batch.local,
                world=batch.world,
                **self.config.criteria(batch),
            )

        total, terms = self.combined(compare)
        logs = {f"loss/{name}": term.detach() for name, term in terms.items()}
        return total, {**logs, "temperature": 1 / scale.detach()[0]}

    def combined(self, compare: Compare) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms, made of the NT-Xent of named embeddings."""
        raise NotImplementedError


@OBJECTIVES.register("comm")
class CoMM(ViewsObjective):
    r"""The fused views of a sample agree, and so does each with the other reduced to one modality.

    .. math:: L = \frac{1}{n+1} \sum_{k \in \{1..n, \mathrm{full}\}} \tfrac12
              [ \mathrm{NTX}(z'_k, z''_\mathrm{full}) + \mathrm{NTX}(z''_k, z'_\mathrm{full}) ]

    z_full is the fusion of all modalities of a sample that are there, z_k of the k-th alone. The first learns what the
    modalities share, what each has of its own and what only both together tell; the others what each can tell.
    Missing modalities: the term k counts the rows that hold k (published: complete samples only).
    Augmentations say what does not matter; without any the views are equal but for dropout.
    """

    class Config(ViewsOptions):
        """Options of `CoMM`.

        Attributes
        ----------
        fusion : str
            The fusion whose output is compared, a table [fusions.NAME] of the recipe.
        """

        kind: Literal["comm"] = "comm"
        fusion: str = "joint"

    def __init__(
        self, config: Config, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        self.fusion = self.fused(config.fusion)
        self.parts = self.fusions[self.fusion]

    @property
    def names(self) -> tuple[str, ...]:
        """The fusion, and the fusion of each modality alone, in both views."""
        first = (self.fusion, *(alone(self.fusion, part) for part in self.parts))
        return (*first, *map(second, first))

    def combined(self, compare: Compare) -> tuple[Tensor, dict[str, Tensor]]:
        """Average the terms."""
        full = self.fusion
        terms = {}
        for part in self.parts:
            one = alone(full, part)
            terms[part] = 0.5 * (compare(one, second(full)) + compare(second(one), full))
        # symmetric in the views, so both halves are one
        terms["full"] = compare(full, second(full))
        return torch.stack(list(terms.values())).mean(), terms


@OBJECTIVES.register("cross_self")
class CrossSelf(ViewsObjective):
    r"""Modalities agree with each other, and each with its own second view: CoMM's baseline Cross+Self.

    .. math:: L = \mathrm{mean}_{i<j} \mathrm{NTX}(z'_i, z'_j) + w\, \mathrm{mean}_i \mathrm{NTX}(z'_i, z''_i)

    The first term learns what the modalities share, the second what each has of its own.
    """

    class Config(ViewsOptions):
        """Options of `CrossSelf`; ``self_weight`` is w."""

        kind: Literal["cross_self"] = "cross_self"
        self_weight: float = Field(1.0, ge=0, allow_inf_nan=False)

    def __init__(
        self, config: Config, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        if len(self.modalities) < 2:
            raise ConfigError(
                "objective 'cross_self' aligns modalities with each other, the recipe has one",
                where="modalities",
                do="add a table [modalities.NAME]",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in both views."""
        return (*self.modalities, *map(second, self.modalities))

    def combined(self, compare: Compare) -> tuple[Tensor, dict[str, Tensor]]:
        """Average the terms of each kind."""
        across = {f"{a}-{b}": compare(a, b) for a, b in combinations(self.modalities, 2)}
        within = {name: compare(name, second(name)) for name in self.modalities}
        total = torch.stack(list(across.values())).mean()
        return total + self.config.self_weight * torch.stack(list(within.values())).mean(), {**across, **within}
