"""A part of each encoder is trained, from its output down: a fixed one, or one that grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from finetune.adapt.base import ADAPTATIONS, Adaptation, Group, group, on_top
from finetune.adapt.full import stage_groups, stages
from finetune.freeze import freeze_except, thaw

if TYPE_CHECKING:
    from finetune.config import FinetuneOptim
    from finetune.predictor import Predictor


class Stagewise(Adaptation):
    """Base: rates of the stages; see `finetune.adapt.full.Full`."""

    layer_decay: float = Field(1.0, gt=0, le=1)

    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[Group]:
        """Return join and head at ``lr``, trained stages at ``encoder_lr`` and less."""
        return [group(on_top(predictor), optim.lr), *stage_groups(predictor, optim.encoder_lr, self.layer_decay)]


@ADAPTATIONS.register("last_n")
class LastN(Stagewise):
    """The last stages of every encoder; the pairwise transfer of Chang et al. (npj Comput. Mater. 8, 2022) is n = 1.

    Unlike their code, what is frozen keeps its batch statistics too.

    Attributes
    ----------
    n : int
        Number of stages, as `pretrain.encoders.base.Encoder.stages` cuts an encoder.
    """

    kind: Literal["last_n"] = "last_n"
    n: int = Field(1, ge=1)

    def prepare(self, predictor: Predictor) -> None:
        """Freeze all stages but the last n."""
        train_last(predictor, self.n)


@ADAPTATIONS.register("staged")
class Staged(Stagewise):
    """Gradual unfreezing: join and head first, then the encoders stage by stage from the top (ULMFiT, section 3.3).

    Attributes
    ----------
    epochs : tuple of int
        Epochs, counted from 0, with each of which one more stage of every encoder is trained; with the last one, all.
    """

    kind: Literal["staged"] = "staged"
    epochs: tuple[int, ...] = Field((5, 10, 15), min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> Staged:
        if list(self.epochs) != sorted(set(self.epochs)) or self.epochs[0] < 0:
            raise ValueError("'epochs' must rise, from 0 on")
        return self

    def prepare(self, predictor: Predictor) -> None:
        """Freeze nothing yet: ranks must know every parameter that will be trained."""

    def begin_epoch(self, predictor: Predictor, epoch: int) -> None:
        """Train the stages that are due."""
        due = sum(epoch >= at for at in self.epochs)
        for encoder in predictor.featurizer.encoders.values():
            thaw(encoder)
        if due < len(self.epochs):
            train_last(predictor, due)


def train_last(predictor: Predictor, n: int) -> None:
    """Freeze all stages of every encoder but the last n."""
    for encoder in predictor.featurizer.encoders.values():
        found = stages(encoder)
        freeze_except(encoder, [parameter for stage in found[len(found) - n :] for parameter in stage] if n else [])
