"""Bytes that a rank sends in a step, by term.

They are those of rings, which gloo and NCCL take for large messages: of W ranks each sends ``(W - 1) n`` bytes to
gather (or reduce and scatter) parts of n bytes, and ``2 (W - 1) / W N`` to sum N bytes (Patarasuk and Yuan 2009,
doi:10.1016/j.jpdc.2008.09.002). A hierarchy of rings, within nodes and between them, sends as many (see `collectives`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from launch.estimates.work import FLOAT, Work


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that a rank sends in a step, the mean over the batches of an optimizer step.

    Attributes
    ----------
    sizes : float
        How many rows the ranks have.
    gather, scatter : float
        Embeddings with presence flags forward, their gradients backward.
    gradients, weights : float
        Of ZeRO: gradients are summed (stages 0 to 2 sum all of them, stage 3 its part), weights gathered (stages 1
        and 2 after the step, stage 3 for each pass forward and backward).
    logs : float
        Loss and logged values.
    """

    sizes: float
    gather: float
    scatter: float
    gradients: float
    weights: float
    logs: float

    @property
    def total(self) -> float:
        """Sum of all."""
        return sum(asdict(self).values())


def reducing(work: Work) -> float:
    """Return how many passes backward of a batch exchange gradients, the mean over those of an optimizer step.

    Stages 2 and 3 do so with that of each micro-batch, stages 0 and 1 with the last one before the optimizer's step.
    """
    return float(work.pieces) if work.stage >= 2 else 1 / work.accumulate


def exchanges(work: Work) -> tuple[float, float]:
    """Return how often a batch reduces and how often it gathers P parameters; a sum is both.

    Micro-batches but the last are encoded without a graph first and once more with one (`pretrain.accumulate`), so that
    k of them are 2 k - 1 passes forward and k backward. Stage 3 gathers for each pass.
    """
    passes = reducing(work)
    if work.stage == 3:
        return passes, 3.0 * work.pieces - 1
    return 2 * passes, 1 / work.accumulate if work.stage else 0.0


def traffic(work: Work, ranks: int, *, logged: int = 8) -> Traffic:
    """Return the bytes that each of ``ranks`` ranks sends in a step."""
    others = ranks - 1
    part = work.rows * work.embeddings * (work.dim + 1) * FLOAT
    whole = others * work.trained * FLOAT / ranks
    gradients, weights = exchanges(work)
    return Traffic(
        sizes=others * 8,
        gather=others * part,
        scatter=others * part,
        gradients=gradients * whole,
        weights=weights * whole,
        logs=2 * others * logged * FLOAT / ranks,
    )
