"""AnchoredCLIP and AllPairsCLIP: sums of pair losses over pairs of modalities (MultiMat, arXiv 2312.00111)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Logs, Objective
from pretrain.objectives.infonce import Temperature, TemperatureConfig, info_nce
from shards.errors import ConfigError
from shards.plugins import Options


class PairsOptions(Options):
    """What every pairwise objective takes."""

    pair_loss: Literal["infonce"] = "infonce"
    temperature: TemperatureConfig = TemperatureConfig()


class PairwiseObjective(Objective):
    """A weighted sum of pair losses; subclasses say which pairs and which weight.

    Every pair uses the rows where both of its modalities exist, for positives and negatives alike.
    """

    pairs: list[tuple[str, str]]
    weight: float

    def __init__(
        self, config: PairsOptions, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        if len(self.names) < 2:
            raise ConfigError(
                f"objective '{config.kind}' aligns modalities with each other, the recipe has {len(self.modalities)}",
                where="modalities",
                do="add a table [modalities.NAME]",
            )
        self.temperature = Temperature(config.temperature)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """Return this rank's share of the loss, and each pair's share and the temperature to log."""
        z, present, scale = batch.z, batch.present, self.temperature()
        losses = {
            f"{a}-{b}": info_nce(z[a], z[b], present[a] & present[b], scale=scale, local=batch.local, world=batch.world)
            for a, b in self.pairs
        }
        total = self.weight * torch.stack(list(losses.values())).sum()
        logs = {f"loss/{pair}": loss.detach() for pair, loss in losses.items()}
        return total, {**logs, "temperature": 1 / scale.detach()[0]}


@OBJECTIVES.register("anchored")
class Anchored(PairwiseObjective):
    """L = sum over the modalities m other than the anchor of L(anchor, m)."""

    class Config(PairsOptions):
        """Options of `Anchored`.

        Attributes
        ----------
        anchor : str
            The modality that all others are aligned with.
        """

        kind: Literal["anchored"] = "anchored"
        anchor: str = "crystal"

    def __init__(
        self, config: Config, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        anchor = self.known(config.anchor, where="objective.anchor")
        self.pairs = [(anchor, name) for name in self.names if name != anchor]
        self.weight = 1.0


@OBJECTIVES.register("all_pairs")
class AllPairs(PairwiseObjective):
    """L = mean over all pairs of modalities {a, b} of L(a, b)."""

    class Config(PairsOptions):
        """Options of `AllPairs`."""

        kind: Literal["all_pairs"] = "all_pairs"

    def __init__(
        self, config: Config, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        self.pairs = list(combinations(self.names, 2))
        self.weight = 1 / len(self.pairs)
