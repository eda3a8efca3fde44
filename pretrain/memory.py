"""Bytes that a rank's memory holds in training: states, and what they are exchanged in.

ZeRO divides states (Rajbhandari et al. 2020, arXiv 1910.02054); what DeepSpeed holds beside them is as
`tests/distributed/test_memory.py` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from pretrain.settings import BUCKET, elements, offloads
from shards.schema import Strict

FLOAT = 4
# elements that DeepSpeed flattens and sums at once at stage 0
SUMMED_AT_ONCE = 500_000_000


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the fullest rank.

    Attributes
    ----------
    weights, gradients, optimizer, average : int
        Parameters in float32 and buffers; gradients; AdamW's two moments, from stage 1 on with a copy of the weights;
        the moving average of the weights.
    exchange : int
        Buckets of gradients and copies that are sent; at stage 3 also the weights that are whole at once.
    host : int
        States that lie in the host's memory instead; no part of the total.
    activations : int
        What the graph of one micro-batch keeps until its backward pass, inputs included.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    exchange: int
    host: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all that is on the accelerator."""
        return sum(asdict(self).values()) - self.host


class Buffers(Strict):
    """What DeepSpeed's settings say of memory, beside the stage.

    Attributes
    ----------
    bucket : int
        Gradients that are exchanged at once; the engine takes no more than there are.
    double : bool
        Whether one bucket is filled while another travels, at stages 1 and 2.
    live, prefetch : int
        Weights that are whole at once at stage 3, and those that are gathered ahead.
    host_optimizer, host_weights : bool
        Whether they lie in the host's memory.
    """

    bucket: int = Field(500_000_000, gt=0)
    double: bool = False
    live: int = Field(1_000_000_000, ge=0)
    prefetch: int = Field(50_000_000, ge=0)
    host_optimizer: bool = False
    host_weights: bool = False


def buffers_of(settings: Mapping[str, Any]) -> Buffers:
    """Return what DeepSpeed's settings say of memory."""
    zero = settings.get("zero_optimization", {})
    return Buffers(
        bucket=elements(settings, BUCKET, least=1),
        # without contiguous gradients they wait where they are, as many as a bucket has
        double=bool(zero.get("overlap_comm")) and zero.get("contiguous_gradients", True),
        live=elements(settings, "stage3_max_live_parameters"),
        prefetch=elements(settings, "stage3_prefetch_bucket_size"),
        host_optimizer=offloads(settings),
        host_weights=offloads(settings, "offload_param"),
    )


def states(
    weights: float, trained: int, *, world: int, stage: int, ema: bool, buffers: Buffers | None = None
) -> dict[str, int]:
    """Return the bytes of a rank by kind, those of `Memory` without the activations.

    They are those of the backward pass that ends with the exchange, the fullest moment where activations count.

    Parameters
    ----------
    weights : float
        Bytes of all parameters and buffers.
    trained : int
        Parameters that learn.
    world, stage : int
        Ranks, and the stage of ZeRO: the optimizer's states (1), gradients (2) and parameters (3) are divided.
    ema : bool
        Whether an average of the weights is kept.
    buffers : Buffers, optional
        Those of DeepSpeed's defaults where left out.
    """
    buffers = buffers or Buffers()
    whole, part = FLOAT * trained, FLOAT * trained // world
    held = {
        "weights": int(weights) // (world if stage == 3 else 1),
        # at stage 1 a rank's own part comes as the whole goes
        "gradients": part if stage >= 2 else whole,
        # two moments and the copy of the weights that is trained; torch's AdamW alone trains the weights themselves
        "optimizer": 3 * part if stage else 2 * whole,
    }
    host = 0
    if stage and buffers.host_optimizer:
        # the same there, its gradient, and what it is copied through
        host += held["optimizer"] + 2 * part
        held |= {"optimizer": 0, "gradients": whole if stage == 1 else 0}
    if stage == 3 and buffers.host_weights:
        host += held["weights"]
        held["weights"] = 0
    exchange = _exchange(weights, trained, stage, buffers)
    return {**held, "average": int(weights) if ema else 0, "exchange": exchange, "host": host}


def _exchange(weights: float, trained: int, stage: int, buffers: Buffers) -> int:
    bucket = FLOAT * min(buffers.bucket, trained)
    buckets = (2 if buffers.double else 1) * bucket
    if stage == 3:
        whole = min(int(weights), FLOAT * buffers.live)
        # weights that come are copied once, gradients that go are too
        return bucket + whole + max(bucket, min(whole, FLOAT * buffers.prefetch))
    # what is summed is a flat copy; at stage 1 the gradients have moved into the bucket and made room for it
    return {0: FLOAT * min(SUMMED_AT_ONCE, trained), 1: buckets, 2: buckets + bucket}[stage]
