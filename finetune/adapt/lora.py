"""Low-rank updates of the encoders' linear maps, by peft."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import nn

from finetune.adapt.base import ADAPTATIONS, Adaptation, Group, group, on_top
from finetune.freeze import freeze_except
from shards.errors import ConfigError

if TYPE_CHECKING:
    from finetune.config import FinetuneOptim
    from finetune.predictor import Predictor


@ADAPTATIONS.register("lora")
class Lora(Adaptation):
    r"""Every linear map W of the encoders becomes :math:`W + \frac{\alpha}{r} B A` (Hu et al., arXiv 2106.09685).

    B is zero at the start, so that nothing changes before training.

    Attributes
    ----------
    rank : int
        r.
    alpha : int
        Scale of the update.
    dropout : float
        Before A, in training.
    merge : bool
        Store the sum of W and its update, which costs nothing in use; False keeps both apart.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: int = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    merge: bool = True

    def insert(self, predictor: Predictor, *, stored: bool = False) -> None:
        """Put A and B beside every linear map."""
        if stored and self.merge:
            return
        from peft import LoraConfig, inject_adapter_in_model

        found = False
        for encoder in predictor.featurizer.encoders.values():
            names = [name for name, module in encoder.named_modules() if type(module) is nn.Linear]
            if not names:
                continue
            found = True
            config = LoraConfig(
                r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=names, bias="none"
            )
            inject_adapter_in_model(config, encoder)
        if not found:
            raise ConfigError("no encoder of the row has a linear map", where="rows.*.strategy", do='{kind = "full"}')

    def prepare(self, predictor: Predictor) -> None:
        """Freeze all but A and B."""
        for encoder in predictor.featurizer.encoders.values():
            freeze_except(encoder, _updates(encoder))

    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[Group]:
        """Return join and head, and A and B, at ``lr``: they are new."""
        return [group(on_top(predictor), optim.lr), group(_updates(predictor.featurizer.encoders), optim.lr)]

    def settle(self, predictor: Predictor) -> None:
        """Add the updates to W, and take A and B out."""
        if not self.merge:
            return
        from peft.tuners.lora import LoraLayer

        for encoder in predictor.featurizer.encoders.values():
            for name, module in list(encoder.named_modules()):
                if isinstance(module, LoraLayer):
                    module.merge()
                    encoder.set_submodule(name, copy.deepcopy(module.get_base_layer()))


def _updates(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in module.named_parameters() if ".lora_A." in name or ".lora_B." in name]
