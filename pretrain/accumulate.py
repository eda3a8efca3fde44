"""Forward and backward of one global batch: encode, gather, compare.

The only place where the two halves of a step meet: the model's `forward` gives this rank's embeddings, the objective
compares those of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from pretrain.gather import gather_batch
from pretrain.objectives.base import Logs, Objective
from pretrain.spans import span
from shards.batch import Batch


class Encode(Protocol):
    """The model as the engine calls it."""

    def __call__(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return this rank's embeddings (b, D) and their presence (b,), by name."""


def contrast(
    encode: Encode, objective: Objective, backward: Callable[[Tensor], None], batch: Batch
) -> tuple[Tensor, Logs]:
    """Run one batch forward and backward; returns this rank's share of the loss, detached, and values to log."""
    z, present = encode(batch)
    with span("gather"):
        everything = gather_batch(z, present, batch.groups if objective.needs_groups else None)
    with span("loss"):
        loss, logs = objective(everything)
    with span("backward"):
        backward(loss)
    return loss.detach(), logs
