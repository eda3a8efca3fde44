"""A moving average of the weights, which is validated and exported in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pretrain.model import MultimodalModel
from shards.errors import CheckpointError


class MovingAverage:
    """Exponential moving average: w_1 after the first update, then ``e_t = decay * e_(t-1) + (1 - decay) * w_t``.

    Buffers are copied. It holds a whole float32 copy of the model, the same on every rank: at ZeRO stage 3 too, where
    the weights must be made whole for every update (`Engine.whole`). Memory that is short is better served by stage 2.

    Parameters
    ----------
    model : MultimodalModel
        What is averaged, before an engine changes its type or spreads it over the ranks.
    decay : float
        Near 1: an average over about ``1 / (1 - decay)`` steps of the optimizer.
    """

    def __init__(self, model: MultimodalModel, decay: float) -> None:
        average = get_ema_multi_avg_fn(decay)

        def in_float32(mean: Any, weights: Any, count: Any) -> None:
            # half-precision weights would swallow changes of a thousandth
            average(mean, [w.to(m.dtype) for m, w in zip(mean, weights, strict=True)], count)

        self.average = AveragedModel(model, multi_avg_fn=in_float32)
        self.average.requires_grad_(False)

    @property
    def module(self) -> MultimodalModel:
        """The model with averaged weights."""
        return cast(MultimodalModel, self.average.module)

    @torch.no_grad()
    def update(self, model: MultimodalModel) -> None:
        """Take the weights in; after each of the optimizer's steps."""
        self.average.update_parameters(model)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what `load_state_dict` goes on from, the same on every rank."""
        return dict(self.average.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned, or raise `CheckpointError`."""
        try:
            self.average.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError("the checkpoint's averaged weights do not fit the model", why=str(error)) from None
