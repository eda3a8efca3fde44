"""A few numbers for every set of modalities that may be left: the network stays, its activations are moved back."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.adapt.base import ADAPTATIONS, Group, group, on_top
from finetune.adapt.frozen import OnFrozen
from finetune.featurizer import Weighing, importance
from finetune.freeze import freeze
from pretrain.encoders.base import Encoded
from pretrain.fusion.base import Fusion
from shards.errors import ConfigError

if TYPE_CHECKING:
    from finetune.config import FinetuneOptim
    from finetune.predictor import Predictor

MOST = 6
LAYERS = (nn.Linear, nn.LayerNorm)


@ADAPTATIONS.register("scale_shift")
class ScaleShift(OnFrozen):
    r"""Scale and shift per missing-modality subset (Reza et al., arXiv 2310.03986): :math:`h' = \gamma_S h + \beta_S`.

    After the encoders, and after every linear map and norm of join and head, rows whose present modalities are
    exactly S, not all, are scaled and shifted by the numbers of S; :math:`\gamma = 1`, :math:`\beta = 0` at the start.
    Not within the encoders: they see one modality, and rows there are mixed (atoms, edges of a whole batch).

    Attributes
    ----------
    head : str
        ``frozen``, as published: a whole predictor, that of the row's ``start``, stays as it is. ``train``: join and
        head are trained with the new numbers.
    """

    kind: Literal["scale_shift"] = "scale_shift"
    head: Literal["train", "frozen"] = "train"

    def insert(self, predictor: Predictor, *, stored: bool = False) -> None:
        """Put the numbers behind the layers."""
        join = predictor.featurizer.join
        names = list(join.inputs)
        if not 2 <= len(names) <= MOST:
            raise ConfigError(
                f"'scale_shift' takes 2 to {MOST} modalities, the row has {len(names)}",
                where="rows.*.modalities",
                why="it learns numbers for every set of modalities that may be left",
            )
        subset = Subset(names)
        _wrap(join, subset)
        _wrap(predictor.head, subset)
        predictor.featurizer.join = ShiftedJoin(join, subset)

    def prepare(self, predictor: Predictor) -> None:
        """Freeze the encoders, and the rest as ``head`` says."""
        super().prepare(predictor)
        if self.head == "frozen":
            kept = {id(parameter) for parameter in _numbers(predictor)}
            freeze_rest = [module for module in _parts(predictor) if not isinstance(module, Shift)]
            for module in freeze_rest:
                if not any(id(p) in kept for p in module.parameters()):
                    freeze(module)
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)

    def groups(self, predictor: Predictor, optim: FinetuneOptim) -> list[Group]:
        """Return everything on top at ``lr``; the numbers do not decay, 1 is where a scale belongs."""
        numbers = _numbers(predictor)
        own = {id(parameter) for parameter in numbers}
        rest = group((p for p in on_top(predictor) if id(p) not in own), optim.lr)
        return [group(numbers, optim.lr, weight_decay=0.0), *([rest] if rest["params"] else [])]


class Subset:
    """Which set of modalities each row of the batch at hand has; set by the join, read by the layers behind it.

    Attributes
    ----------
    number : Tensor
        (b,) number of the row's set among `sets`; ``len(sets)`` for all modalities, and for none.
    """

    number: Tensor

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.sets = [set(chosen) for size in range(1, len(names)) for chosen in combinations(names, size)]

    def see(self, present: Mapping[str, Tensor]) -> None:
        """Find the set of every row."""
        there = torch.stack([present[name] for name in self.names], dim=1)
        number = torch.full((len(there),), len(self.sets), device=there.device)
        for i, chosen in enumerate(self.sets):
            wanted = torch.tensor([name in chosen for name in self.names], device=there.device)
            number = number.masked_fill((there == wanted).all(dim=1), i)
        self.number = number


class Shift(nn.Module):
    """Scale and shift of width D for every set.

    Parameters
    ----------
    subset : Subset
        Of the batch at hand.
    width : int
        D.
    """

    def __init__(self, subset: Subset, width: int) -> None:
        super().__init__()
        self.subset = subset
        self.gamma = nn.Parameter(torch.ones(len(subset.sets), width))
        self.beta = nn.Parameter(torch.zeros(len(subset.sets), width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, ..., D); rows with all modalities, or none, come back as they are."""
        shape = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
        # a batch without rows has one where it is joined
        number = self.subset.number[: len(x)]
        # one set more, which is no parameter, for the rows that are left alone
        gamma = F.pad(self.gamma, (0, 0, 0, 1), value=1.0)[number].view(shape)
        beta = F.pad(self.beta, (0, 0, 0, 1))[number].view(shape)
        return gamma * x + beta


class Shifted(nn.Module):
    """A layer and the numbers behind it."""

    def __init__(self, base: nn.Module, subset: Subset, width: int) -> None:
        super().__init__()
        self.base, self.shift = base, Shift(subset, width)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        return self.shift(self.base(x))


class ShiftedJoin(Weighing):
    """A join that finds the set of every row, and moves what the encoders give before it joins it."""

    def __init__(self, base: Fusion, subset: Subset) -> None:
        super().__init__(base.config, base.inputs)
        self.base, self.subset, self.dim = base, subset, base.dim
        self.reads_tokens = base.reads_tokens  # type: ignore[misc]
        self.shifts = nn.ModuleDict({name: Shift(subset, width.dim) for name, width in base.inputs.items()})

    def forward(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Fuse b rows."""
        self.subset.see(present)
        return self.base(self._moved(encoded), present)

    def importance(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Tensor | None:
        """Return how the join itself weighs what it gets."""
        self.subset.see(present)
        return importance(self.base, self._moved(encoded), present)

    def _moved(self, encoded: Mapping[str, Encoded]) -> dict[str, Encoded]:
        moved = {}
        for name, part in encoded.items():
            tokens = None if part.tokens is None else self.shifts[name](part.tokens)
            moved[name] = Encoded(self.shifts[name](part.vector), tokens, part.mask)
        return moved


def _wrap(module: nn.Module, subset: Subset) -> None:
    """Put numbers behind every linear map and norm of a module."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LAYERS):
            width = layer.out_features if isinstance(layer, nn.Linear) else layer.normalized_shape[-1]
            module.set_submodule(name, Shifted(layer, subset, width))


def _parts(predictor: Predictor) -> list[nn.Module]:
    return [module for top in (predictor.featurizer.join, predictor.head) for module in top.modules()]


def _numbers(predictor: Predictor) -> list[nn.Parameter]:
    """Return gamma and beta of all layers."""
    return [p for module in _parts(predictor) if isinstance(module, Shift) for p in module.parameters()]
