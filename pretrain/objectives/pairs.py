"""Sums of pair losses over pairs of embeddings.

Anchored and all-pairs (MultiMat, arXiv 2312.00111), with a frozen anchor (ImageBind) or a fused one (MatMCL, GMC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Logs, Objective
from pretrain.objectives.pair_losses import PAIR_LOSSES, PairLossOptions
from pretrain.objectives.temperature import Temperature, TemperatureConfig
from shards.errors import ConfigError
from shards.plugins import Options

Pair = tuple[str, str]
Fusions = Mapping[str, Sequence[str]]


class PairsOptions(Options):
    """What every pairwise objective takes.

    Attributes
    ----------
    pair_loss : str or dict
        Kind of a pair loss, or its table: ``"siglip"``, ``{ kind = "siglip", bias = -10.0 }``.
    temperature : TemperatureConfig
        Of the pair losses that have one; learned for each pair, each pair also has its own parameters of the loss.
    """

    pair_loss: PairLossOptions = Field("infonce", validate_default=True)  # type: ignore[assignment]
    temperature: TemperatureConfig = TemperatureConfig()


class PairwiseObjective(Objective):
    """A weighted sum of pair losses; subclasses say which pairs and which weight.

    Every pair uses the rows where both of its embeddings exist, for positives and negatives alike.
    """

    weight: float = 1.0

    def __init__(self, config: PairsOptions, modalities: Sequence[str], fusions: Fusions | None = None) -> None:
        super().__init__(config, modalities, fusions)
        self.pairs = self._pairs()
        if not self.pairs:
            raise ConfigError(
                f"objective '{config.kind}' aligns modalities with each other, the recipe has {len(self.modalities)}",
                where="modalities",
                do="add a table [modalities.NAME]",
            )
        plugin = PAIR_LOSSES.get(config.pair_loss.kind)
        unchanged = config.temperature == type(config).model_fields["temperature"].default
        if not plugin.tempered and not unchanged:
            raise ConfigError(
                f"pair loss '{config.pair_loss.kind}' has no temperature", where="objective.temperature", do="remove it"
            )
        sets = len(self.pairs) if config.temperature.per_pair and plugin.tempered else 1
        self.temperature = Temperature(config.temperature, sets) if plugin.tempered else None
        self.losses = nn.ModuleList(plugin(config.pair_loss) for _ in range(sets))
        self.needs_groups = any(loss.needs_groups for loss in self.losses)

    def _pairs(self) -> list[Pair]:
        raise NotImplementedError

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """Return this rank's share of the loss, and each pair's share and what is learned to log.

        Logged are ``loss/a-b`` for every pair of embeddings and ``temperature``, or ``temperature/a-b`` where each
        pair has its own; likewise what a pair loss logs.
        """
        z, present, sets = batch.z, batch.present, len(self.losses)
        anywhere = next(iter(z.values()))
        scales = anywhere.new_ones(1).float() if self.temperature is None else self.temperature()
        losses, logs = [], {}
        for i, (a, b) in enumerate(self.pairs):
            own, suffix = (i, f"/{a}-{b}") if sets > 1 else (0, "")
            scale = scales[own : own + 1]
            loss, learned = self.losses[own](z[a], z[b], present[a] & present[b], scale, batch)
            losses.append(loss)
            logs[f"loss/{a}-{b}"] = loss.detach()
            if self.temperature is not None:
                logs[f"temperature{suffix}"] = 1 / scale.detach()[0]
            logs |= {f"{name}{suffix}": value for name, value in learned.items()}
        return self.weight * torch.stack(losses).sum(), logs


@OBJECTIVES.register("anchored")
class Anchored(PairwiseObjective):
    """L = sum over the modalities and fusions m other than the anchor of L(anchor, m)."""

    class Config(PairsOptions):
        """Options of `Anchored`.

        Attributes
        ----------
        anchor : str
            The modality, or fusion, that all others are aligned with.
        """

        kind: Literal["anchored"] = "anchored"
        anchor: str = "crystal"

    def _pairs(self) -> list[Pair]:
        anchor = self.known(self.config.anchor, where="objective.anchor")
        return [(anchor, name) for name in self.names if name != anchor]


@OBJECTIVES.register("all_pairs")
class AllPairs(PairwiseObjective):
    """L = mean over all pairs of modalities and fusions {a, b} of L(a, b)."""

    class Config(PairsOptions):
        """Options of `AllPairs`."""

        kind: Literal["all_pairs"] = "all_pairs"

    def _pairs(self) -> list[Pair]:
        pairs = list(combinations(self.names, 2))
        self.weight = 1 / max(len(pairs), 1)
        return pairs


@OBJECTIVES.register("frozen_anchor")
class FrozenAnchor(Anchored):
    """`Anchored` on a modality that does not learn: the others move to where it is (ImageBind, Girdhar 2023).

    No gradient reaches the anchor's embedding. That alone keeps its encoder as it is only where weight decay and
    running statistics do not change it: freeze it as well, with ``freeze`` in the table of its modality.
    """

    class Config(Anchored.Config):
        """Options of `FrozenAnchor`; by default every pair learns a temperature."""

        kind: Literal["frozen_anchor"] = "frozen_anchor"  # type: ignore[assignment]
        temperature: TemperatureConfig = TemperatureConfig(per_pair=True)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """See `PairwiseObjective.forward`."""
        anchor = self.config.anchor
        return super().forward(replace(batch, z={**batch.z, anchor: batch.z[anchor].detach()}))


@OBJECTIVES.register("fused_anchor")
class FusedAnchor(PairwiseObjective):
    """L = sum over the modalities m of L(fusion, m), by default NT-Xent at temperature 0.1: MatMCL's SGPT.

    The modalities are never contrasted with each other: the fusion is the only bridge (GMC, Poklukar 2022; MatMCL,
    Wu 2025). A row that lacks m is dropped from L(fusion, m); its fusion is that of the modalities it has.
    """

    class Config(PairsOptions):
        """Options of `FusedAnchor`.

        Attributes
        ----------
        anchor : str
            The fusion.
        """

        kind: Literal["fused_anchor"] = "fused_anchor"
        anchor: str = "joint"
        pair_loss: PairLossOptions = Field("ntxent", validate_default=True)  # type: ignore[assignment]
        temperature: TemperatureConfig = TemperatureConfig(learn=False, init=0.1)

    @property
    def names(self) -> tuple[str, ...]:
        """The fusion and the modalities."""
        return (self.config.anchor, *self.modalities)

    def _pairs(self) -> list[Pair]:
        anchor = self.fused(self.config.anchor, where="objective.anchor")
        return [(anchor, name) for name in self.modalities] if len(self.modalities) > 1 else []
