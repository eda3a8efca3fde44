"""Everything is trained: from the pretrained weights, or from random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field
from torch import nn

from finetune.adapt.base import ADAPTATIONS, Adaptation, Group, group, on_top

if TYPE_CHECKING:
    from finetune.config import FinetuneOptim
    from finetune.predictor import Predictor
    from pretrain.encoders.base import Encoder


@ADAPTATIONS.register("full")
class Full(Adaptation):
    """All parameters; the encoders at rates that fall from their output to their input.

    Discriminative learning rates, ULMFiT (Howard & Ruder, arXiv 1801.06146), section 3.2.

    Attributes
    ----------
    layer_decay : float
        Factor of the learning rate from each stage of an encoder to the one below; 1: the same rate for all.
        ULMFiT's is 1 / 2.6 = 0.38.
    """

    kind: Literal["full"] = "full"
    layer_decay: float = Field(1.0, gt=0, le=1)

    def prepare(self, predictor: Predictor) -> None:
        """Freeze nothing."""

    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[Group]:
        """Return join and head at ``lr``, stages at ``encoder_lr`` and less."""
        return [group(on_top(predictor), optim.lr), *stage_groups(predictor, optim.encoder_lr, self.layer_decay)]


@ADAPTATIONS.register("scratch")
class Scratch(Adaptation):
    """The same architecture from random weights, all at ``lr``: what pretraining has to beat."""

    pretrained: ClassVar[bool] = False
    kind: Literal["scratch"] = "scratch"

    def prepare(self, predictor: Predictor) -> None:
        """Freeze nothing."""

    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[Group]:
        """Return everything at ``lr``."""
        return [group(predictor.parameters(), optim.lr)]


def stages(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """Return an encoder's stages from the input to the output; what it names none for belongs to the first."""
    found = [list(stage) for stage in cast("Encoder", encoder).stages()]
    named = {parameter for stage in found for parameter in stage}
    rest = [parameter for parameter in encoder.parameters() if parameter not in named]
    if not found:
        return [rest] if rest else []
    return [rest + found[0], *found[1:]]


def stage_groups(predictor: Predictor, lr: float, decay: float) -> list[Group]:
    """Return the encoders' trained parameters: those ``below`` the last stage by n at ``lr * decay ** n``."""
    groups = [
        group(stage, lr * decay**below)
        for encoder in predictor.featurizer.encoders.values()
        for below, stage in enumerate(reversed(stages(encoder)))
    ]
    return [found for found in groups if found["params"]]
