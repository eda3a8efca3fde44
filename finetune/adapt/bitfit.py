"""The biases alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn

from finetune.adapt.base import ADAPTATIONS, Adaptation, Group, group, on_top
from finetune.freeze import freeze_except

if TYPE_CHECKING:
    from finetune.config import FinetuneOptim
    from finetune.predictor import Predictor


@ADAPTATIONS.register("bitfit")
class BitFit(Adaptation):
    """The encoders' biases, and what is on top of them (Ben Zaken et al., arXiv 2106.10199)."""

    kind: Literal["bitfit"] = "bitfit"

    def prepare(self, predictor: Predictor) -> None:
        """Freeze all but the biases."""
        for encoder in predictor.featurizer.encoders.values():
            freeze_except(encoder, biases(encoder))

    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[Group]:
        """Return join and head at ``lr``, biases at ``encoder_lr``; a bias does not decay."""
        found = group(biases(predictor.featurizer.encoders), optim.encoder_lr, weight_decay=0.0)
        return [group(on_top(predictor), optim.lr), found]


def biases(module: nn.Module) -> list[nn.Parameter]:
    """Return the biases of a module by their names."""
    return [parameter for name, parameter in module.named_parameters() if name.rpartition(".")[2].endswith("bias")]
