"""The adaptation contract: which parameters of a predictor are trained, at which rate, and from when on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from shards.plugins import Options, Registry

if TYPE_CHECKING:
    from finetune.config import FinetuneOptim
    from finetune.featurizer import MakeJoin
    from finetune.predictor import Predictor
    from finetune.trained_on import TrainedOn
    from shards.reader import Dataset

Group = dict[str, Any]


class Adaptation(Options):
    """Base of the adaptation plug-ins: a typed table of options.

    A predictor is built, `insert` adds what the adaptation adds to it, `prepare` freezes what it freezes, it is
    trained, and `settle` leaves it as it is stored. A stored predictor is built and runs `insert` alone.

    Attributes
    ----------
    pretrained : bool
        Whether the encoders start from the pretrained weights.
    cached : bool
        Whether the encoders never change, so that their outputs are computed once and training takes seconds.
    own_encoders : bool
        Whether `encoders_of` stands in place of the encoders of the recipe's model.
    """

    pretrained: ClassVar[bool] = True
    cached: ClassVar[bool] = False
    own_encoders: ClassVar[bool] = False

    def check(self) -> None:
        """Raise `ConfigError` where the options do not go together."""

    def check_data(self, modalities: Sequence[str], dataset: Dataset) -> dict[str, TrainedOn]:
        """Raise an error where models of its own do not read a data set; return by URI what they were trained on."""
        return {}

    def encoders_of(self, modalities: Sequence[str], stored: Sequence[Mapping[str, Any]] | None = None) -> nn.Module:
        """Return encoders and join of an adaptation that brings its own; ``stored``: what a predictor says of them."""
        raise NotImplementedError

    def join(self) -> MakeJoin | None:
        """Return the join of the encoders' outputs, where the adaptation brings its own."""
        return None

    def insert(self, predictor: Predictor, *, stored: bool = False) -> None:
        """Add new parameters, in place; ``stored``: to a predictor that is about to get its stored weights."""

    @abstractmethod
    def prepare(self, predictor: Predictor) -> None:
        """Freeze what is not trained, in place; batch statistics too."""

    @abstractmethod
    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[Group]:
        """Return the optimizer's parameter groups (``params``, ``lr``); what is in none is frozen, bitwise."""

    def begin_epoch(self, predictor: Predictor, epoch: int) -> None:
        """Unfreeze what is due (staged unfreezing); run after the predictor was put into training mode."""

    def auxiliary(self, predictor: Predictor) -> Tensor | None:
        """Return what the last forward pass adds to the loss, None for nothing."""
        return None

    def settle(self, predictor: Predictor) -> None:
        """Fold into the weights what need not stay apart from them, in place."""


def on_top(predictor: Predictor) -> list[nn.Parameter]:
    """Return the parameters that are new for a target and always trained: join and head."""
    return [*predictor.featurizer.join.parameters(), *predictor.head.parameters()]


def group(parameters: Iterable[nn.Parameter], lr: float, **options: Any) -> Group:
    """Return a group of those parameters that are trained."""
    return {"params": [p for p in parameters if p.requires_grad], "lr": lr, **options}


ADAPTATIONS: Registry[type[Adaptation]] = Registry(
    "adaptation",
    {
        "frozen": "finetune.adapt.frozen",
        "full": "finetune.adapt.full",
        "scratch": "finetune.adapt.full",
        "last_n": "finetune.adapt.stages",
        "staged": "finetune.adapt.stages",
        "lora": "finetune.adapt.lora",
        "bitfit": "finetune.adapt.bitfit",
        "scale_shift": "finetune.adapt.scale_shift",
        "attentive": "finetune.adapt.attentive",
        "experts": "finetune.adapt.experts",
    },
)
