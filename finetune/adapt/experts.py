"""A gate over several frozen checkpoints, in place of the encoders of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor

from finetune.adapt.base import ADAPTATIONS, Adaptation, Group, group
from finetune.experts import Experts, ExpertsConfig, check_gate

if TYPE_CHECKING:
    from finetune.config import FinetuneOptim
    from finetune.predictor import Predictor
    from finetune.trained_on import TrainedOn
    from shards.reader import Dataset


@ADAPTATIONS.register("experts")
class MixtureOfExperts(Adaptation, ExpertsConfig):
    """Gate, projections and head are trained on what frozen experts make of the row's modalities.

    Attributes
    ----------
    models : tuple of str
        URIs of the experts: pretrained models, of which each reads the modalities of the row that it knows, or
        predictors of other properties, without their heads (as Chang et al. have it).
    """

    cached: ClassVar[bool] = True
    own_encoders: ClassVar[bool] = True

    kind: Literal["experts"] = "experts"
    models: tuple[str, ...] = Field(min_length=2)

    def check(self) -> None:
        """Raise `ConfigError` where the gate cannot select among the experts."""
        check_gate(len(self.models), self)

    def check_data(self, modalities: Sequence[str], dataset: Dataset) -> dict[str, TrainedOn]:
        """Load every expert once, before anything is trained."""
        from finetune.expert_sources import check_experts

        return check_experts(self.models, modalities, dataset)

    def encoders_of(self, modalities: Sequence[str], stored: Sequence[Mapping[str, Any]] | None = None) -> Experts:
        """Return the mixture: its experts with their weights, or, of a predictor that is read, as they are stored."""
        from finetune.expert_sources import Source

        if stored is None:
            sources = [Source.load(uri, modalities) for uri in self.models]
        else:
            sources = [Source.stored(table) for table in stored]
        mixture = Experts([source.featurizer for source in sources], self)
        mixture.sources = [source.table() for source in sources]
        return mixture

    def prepare(self, predictor: Predictor) -> None:
        """Do nothing: experts are frozen where they are put together."""

    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[Group]:
        """Return gate, projections and head at ``lr``."""
        mixture = cast(Experts, predictor.featurizer)
        parts = (mixture.gate, mixture.projections, predictor.head)
        return [group([p for part in parts for p in part.parameters()], optim.lr)]

    def auxiliary(self, predictor: Predictor) -> Tensor | None:
        """Return what the gate adds to the loss of the last batch."""
        return cast(Experts, predictor.featurizer).auxiliary
