"""Guards of the optimizer's step: losses and gradients that are not finite, and losses that leap.

What they judge are means over all ranks, the same bits everywhere: so all ranks decide alike, before the step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.config import GuardConfig
from pretrain.signals import anywhere
from shards.batch import Batch
from shards.errors import MatloomError

# of the median: below it the scatter of a loss that hardly varies says nothing
LEAST_SCATTER = 0.01
NAMED = 8


class DivergenceError(MatloomError):
    """Training does not get on: its losses or gradients are of no use."""

    exit_code = 6
    on_all_ranks = True


class Verdict(Enum):
    """What to do with a gradient."""

    APPLY = "apply"
    SKIP = "skip"
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Judgement:
    """A verdict and, where something is wrong, what; a loss that leaps is ``finite`` all the same."""

    verdict: Verdict
    reason: str = ""
    finite: bool = True


class Guards:
    """Judges every step before it is made.

    Parameters
    ----------
    config : GuardConfig
        The recipe's ``[guards]``.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.spike_window)
        self.streak: list[int] = []
        self.passed_over: set[int] = set()
        self.skipped = self.rollbacks = 0

    def judge(self, step: int, values: Mapping[str, float]) -> Judgement:
        """Judge the step from what `Engine.compute` returned of it.

        Parameters
        ----------
        step : int
            From 0.
        values : mapping of str to float
            ``loss``, and ``finite``: 1 where loss and gradient are finite on every rank.
        """
        loss = values["loss"]
        bad = not math.isfinite(loss) or values["finite"] < 1
        leap = None if bad or self.config.spikes == "off" else self._leap(loss)
        if not bad and (leap is None or self.config.spikes == "warn"):
            self.streak.clear()
            self.losses.append(loss)
            return Judgement(Verdict.APPLY, leap or "")
        self.streak.append(step)
        self.skipped += 1
        last = len(self.streak) >= self.config.patience
        reason = leap or ("the loss is not finite" if not math.isfinite(loss) else "the gradient is not finite")
        return Judgement(Verdict.ROLL_BACK if last else Verdict.SKIP, reason, not bad)

    def _leap(self, loss: float) -> str | None:
        """Say that a loss lies far above the last ones: their median plus a multiple of their scatter."""
        if len(self.losses) < self.config.spike_window:
            return None
        middle = median(self.losses)
        scatter = max(median(abs(x - middle) for x in self.losses), LEAST_SCATTER * abs(middle))
        if loss <= middle + self.config.spike_factor * scatter:
            return None
        return f"the loss leaps to {loss:.4g}, where the last {len(self.losses)} have the median {middle:.4g}"

    @property
    def healthy(self) -> bool:
        """Say whether the weights may be saved: the last loss and gradient that they gave were good."""
        return not self.streak

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know to judge as this one would have."""
        return {
            "losses": list(self.losses),
            "streak": self.streak,
            "passed_over": sorted(self.passed_over),
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.losses = deque(state.get("losses", ()), maxlen=self.config.spike_window)
        self.streak = list(state.get("streak", ()))
        self.passed_over = set(state.get("passed_over", ()))
        self.skipped, self.rollbacks = state.get("skipped", 0), state.get("rollbacks", 0)

    def roll_back(self, reason: str) -> None:
        """Count a return to a checkpoint, or raise `DivergenceError` where there have been enough of them."""
        if self.rollbacks >= self.config.rollbacks:
            first, last = self.streak[0] + 1, self.streak[-1] + 1
            raise DivergenceError(
                f"{reason}, in {len(self.streak)} steps in a row ({first} to {last})",
                why=f"returned to a checkpoint {self.rollbacks} times before; no bad weights were saved",
                do="look at the samples named above; a lower optim.lr, fp32, or more guards.patience",
            )
        self.rollbacks += 1
        self.passed_over.update(self.streak)
        self.streak.clear()

    def returned(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of the checkpoint that was returned to, knowing what was learned since."""
        passed_over, skipped, rollbacks = self.passed_over, self.skipped, self.rollbacks
        self.restore(state)
        self.passed_over |= passed_over
        self.skipped, self.rollbacks = skipped, rollbacks


@torch.no_grad()
def culprits(model: nn.Module, batch: Batch) -> str:
    """Name the ranks, embeddings and samples whose numbers are not finite; every rank calls it, after a bad step.

    The loss compares the embeddings of all ranks, so one bad row spoils it everywhere; the rows that a rank embeds are
    its own. Where all are finite, the loss or a gradient alone is to blame, and the batch is named.
    """
    z, _ = model(batch)
    mine = [
        f"rank {dist.get_rank()}: the embedding '{name}' is not finite for {_named(batch.ids, rows)}"
        for name, vectors in z.items()
        if len(rows := _bad_rows(vectors))
    ]
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, mine or None)
    found = [line for lines in told if lines for line in lines]
    if not found:
        dist.all_gather_object(told, f"rank {dist.get_rank()}: {_named(batch.ids, range(len(batch.ids)))}")
        found = ["every embedding is finite, so it is the loss or its gradient; the batch was", *told[:NAMED]]
    return "\n  ".join(found[: 2 * NAMED])


def _bad_rows(vectors: Tensor) -> list[int]:
    return (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()


def _named(ids: list[str], rows: Iterable[int]) -> str:
    names = [ids[row] for row in rows if row < len(ids)]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def finite_weights(model: nn.Module) -> bool:
    """Say whether all weights are finite on all ranks; every rank calls it."""
    # under ZeRO stage 3 a rank has a part of each weight
    parts = [getattr(weight, "ds_tensor", weight) for weight in model.parameters()]
    return not anywhere(not all(bool(torch.isfinite(part.detach()).all()) for part in parts))
