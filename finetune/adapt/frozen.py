"""The encoders stay as they are; what is on top of them is trained on their cached outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from finetune.adapt.base import ADAPTATIONS, Adaptation, Group, group, on_top
from finetune.freeze import freeze

if TYPE_CHECKING:
    from finetune.config import FinetuneOptim
    from finetune.predictor import Predictor


class OnFrozen(Adaptation):
    """Base of what never changes an encoder."""

    cached: ClassVar[bool] = True

    def prepare(self, predictor: Predictor) -> None:
        """Freeze the encoders, batch statistics included."""
        freeze(predictor.featurizer.encoders)

    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[Group]:
        """Return join and head at ``lr``."""
        return [group(on_top(predictor), optim.lr)]


@ADAPTATIONS.register("frozen")
class Frozen(OnFrozen):
    """The pretrained encoders, bitwise."""

    kind: Literal["frozen"] = "frozen"

    def prepare(self, predictor: Predictor) -> None:
        """Freeze the encoders; and what stands in for an absent modality, where the head keeps rows that hold it."""
        super().prepare(predictor)
        if predictor.head.keeps_rows:
            freeze(predictor.featurizer.join)
