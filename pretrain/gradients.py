"""Norms of the global gradient, of the whole model and of each of its parts, at every ZeRO stage.

Each rank looks at the piece of the averaged gradient that it holds: at stage 0 all of it, else its own partition. The
sum of the squares over the ranks is that of the global gradient, so that nothing is gathered. A norm is also the
cheapest way to see whether all elements are finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def part_of(name: str) -> str:
    """Return the part of the model that a parameter counts to: its modality or fusion, or ``objective``."""
    kind, _, rest = name.partition(".")
    return rest.split(".")[0] if kind in ("encoders", "projections", "fusions") else kind


class GradientNorms:
    """The norms of one model's gradient, by part: a modality with its projection, a fusion, the objective.

    Parameters
    ----------
    model : nn.Module
        Under DeepSpeed, which links its parameters to their partitions.
    stage : int
        Of ZeRO.
    rank, world : int
        This rank and the number of ranks.
    """

    def __init__(self, model: nn.Module, stage: int, rank: int, world: int) -> None:
        self.stage, self.rank, self.world = stage, rank, world
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in trained]
        self.parts = list(dict.fromkeys(part_of(name) for name, _ in trained))
        self.index = [self.parts.index(part_of(name)) for name, _ in trained]

    def squares(self) -> Tensor:
        """Return this rank's share (P,) of the squared norms of the parts: their sum over the ranks is exact.

        To be called after the last backward pass before the optimizer's step.
        """
        pieces = [self._piece(parameter) for parameter in self.parameters]
        held = [(index, piece) for index, piece in zip(self.index, pieces, strict=True) if piece is not None]
        device = held[0][1].device if held else self.parameters[0].device
        squares = torch.zeros(len(self.parts), device=device)
        if held:
            norms = torch.stack(torch._foreach_norm([piece.float() for _, piece in held]))
            squares.index_add_(0, torch.tensor([index for index, _ in held], device=device), norms.square())
        # at stage 0 every rank holds everything
        return squares if self.stage else squares / self.world

    def _piece(self, parameter: Any) -> Tensor | None:
        """Return the part of the averaged gradient of a parameter that lies on this rank, None where there is none."""
        if self.stage == 0:
            return parameter.grad
        if self.stage == 3:
            piece = parameter._z3_optimizer.get_local_fp32_grad_for_param(parameter)
            # the last partitions are padded
            real = min(piece.numel(), parameter.ds_numel - self.rank * piece.numel())
            return piece.narrow(0, 0, real) if real > 0 else None
        mapping = parameter._hp_mapping
        return None if mapping is None else mapping.get_lp_grad_fragment(parameter._index_in_param_group)
