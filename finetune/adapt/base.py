"""The adaptation contract: which parameters of a predictor are trained, at which rate, and from when on."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from shards.plugins import Options, Registry

if TYPE_CHECKING:
    from finetune.config import FinetuneOptim
    from finetune.predictor import Predictor


class Adaptation(Options):
    """Base of the adaptation plug-ins: a typed table of options.

    Attributes
    ----------
    pretrained : bool
        Whether the encoders start from the pretrained weights.
    cached : bool
        Whether the encoders never change, so that their vectors are computed once and training takes seconds.
    """

    pretrained: ClassVar[bool] = True
    cached: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, predictor: Predictor) -> None:
        """Change a predictor in place: freeze, insert new parameters. Run when it is made and when it is loaded."""

    @abstractmethod
    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups (``params``, ``lr``); what is in none is frozen, bitwise."""

    def begin_epoch(self, predictor: Predictor, epoch: int, epochs: int) -> None:
        """Unfreeze what is due (staged unfreezing)."""


ADAPTATIONS: Registry[type[Adaptation]] = Registry("adaptation", {})
