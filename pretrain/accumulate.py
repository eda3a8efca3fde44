"""Forward and backward of one global batch: encode, gather, compare; in micro-batches where memory is short.

The only place where the two halves of a step meet: the model's `forward` gives this rank's embeddings, the objective
compares those of all ranks. A contrastive batch cannot be cut as others can, since every row is compared with every
other; but its embeddings are small, and what needs memory are the encoders' activations. Feature-cache accumulation
(GradCache: Gao, Zhang, Han and Callan 2021, arXiv 2101.06983, section 3.2) encodes the micro-batches without a graph,
compares all embeddings at once, and then encodes each micro-batch again, with the same random numbers, to take the
gradient at its embeddings on into the encoder. Here the last micro-batch is encoded once only and keeps its graph: the
objective's own parameters get their gradient with it, in the same way as without micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.gather import distributed, gather_batch
from pretrain.objectives.base import GlobalBatch, Logs, Objective
from pretrain.spans import span
from shards.batch import Batch, rows_of
from shards.schema import ModalitySpec

Embeddings = tuple[dict[str, Tensor], dict[str, Tensor]]


class Encode(Protocol):
    """The model as the engine calls it."""

    def __call__(self, batch: Batch) -> Embeddings:
        """Return this rank's embeddings (b, D) and their presence (b,), by name."""


def contrast(
    encode: Encode,
    objective: Objective,
    backward: Callable[[Tensor], None],
    batch: Batch,
    *,
    specs: Mapping[str, ModalitySpec] | None = None,
    micro_batch: int | None = None,
    set_boundary: Callable[[bool], None] = lambda last: None,
    boundary: bool = True,
) -> tuple[Tensor, Logs]:
    """Run one batch forward and backward; returns this rank's share of the loss, detached, and values to log.

    The gradient is that of the whole batch, whatever ``micro_batch`` is: of the same micro-batches, with the same
    random numbers, whose graphs are all held at once. The objective runs once in training mode, so that its buffers
    move once.

    Parameters
    ----------
    encode, objective
        The two halves of the step. Random numbers of `encode` must be torch's.
    backward : callable
        Takes a 0-dim value and adds its gradient, times any constant factor (a loss scale, a share of several
        batches), to that of the parameters. It is called as often on every rank: once a micro-batch.
    batch : Batch
        This rank's part; it may have no rows.
    specs : mapping of str to ModalitySpec, optional
        Say how to cut the batch; needed with ``micro_batch``.
    micro_batch : int, optional
        Most rows a rank encodes at a time with a graph; None: all.
    set_boundary : callable
        Told before each `backward` whether it is the last one before the optimizer's step.
    boundary : bool
        Whether the optimizer's step comes after this batch.
    """
    parts = [batch] if micro_batch is None else micro_batches(batch, specs or {}, micro_batch)
    cache, live = _first_pass(encode, parts, batch.groups.device)
    # embeddings of frozen modalities get no gradient
    learned = [name for name, z in live[0].items() if z.requires_grad]
    replayed = cache if learned else []
    for cached in replayed:
        for name in learned:
            cached.z[name].requires_grad_()
    with span("gather"):
        z = _joined([*(cached.z for cached in cache), live[0]])
        present = _joined([*(cached.present for cached in cache), live[1]])
        everything = gather_batch(z, present, batch.groups if objective.needs_groups else None)
    with span("loss"):
        loss, logs = objective(everything)
    # its gradient is the factor that `backward` multiplies by
    factor = torch.zeros((), device=loss.device, requires_grad=True)
    set_boundary(boundary and not replayed)
    with span("backward"):
        backward(loss + factor)
    step = Step(encode, backward, set_boundary, boundary)
    _replay(step, replayed, learned, factor, lambda: touched(objective, everything))
    return loss.detach(), logs


class Step(NamedTuple):
    """What `contrast` was given to run the model with."""

    encode: Encode
    backward: Callable[[Tensor], None]
    set_boundary: Callable[[bool], None]
    boundary: bool


class Cached(NamedTuple):
    """A micro-batch's embeddings, which are leaves of the loss, and what it was encoded from."""

    z: dict[str, Tensor]
    present: dict[str, Tensor]
    batch: Batch
    random: RandomState


def _first_pass(encode: Encode, parts: list[Batch], device: torch.device) -> tuple[list[Cached], Embeddings]:
    """Encode all micro-batches in turn, the last one alone with a graph."""
    cache = []
    for part in parts[:-1]:
        random = random_state(device)
        with torch.no_grad():
            cache.append(Cached(*encode(part), part, random))
    return cache, encode(parts[-1])


def _replay(
    step: Step, cache: list[Cached], learned: Sequence[str], factor: Tensor, reached: Callable[[], Tensor]
) -> None:
    """Take the loss's gradient at the cached embeddings on into the encoders: backward of sum(z * dL/dz)."""
    if not cache:
        return
    afterwards = random_state(factor.device)
    for number, cached in enumerate(cache, 1):
        set_random_state(cached.random, factor.device)
        again, _ = step.encode(cached.batch)
        value = torch.stack([(again[name] * _gradient(cached.z[name], factor)).sum() for name in learned]).sum()
        last = number == len(cache)
        if last:
            value = value + reached()
        step.set_boundary(step.boundary and last)
        with span("backward"):
            step.backward(value)
    set_random_state(afterwards, factor.device)


def touched(objective: Objective, batch: GlobalBatch) -> Tensor:
    """Return 0 with a graph to every parameter of the objective, by running it on no rows.

    The last backward pass before the optimizer's step must reach every parameter: an optimizer that is offloaded to
    the CPU sees no others (DeepSpeed 0.19.8), and forgets what they got in the passes before. Only through its forward
    pass are parameters there at ZeRO stage 3.
    """
    nothing = replace(
        batch,
        z={name: z[:0].detach() for name, z in batch.z.items()},
        present={name: mask[:0] for name, mask in batch.present.items()},
        local=slice(0, 0),
        groups=None if batch.groups is None else batch.groups[:0],
    )
    training = objective.training
    objective.eval()
    zero, _ = objective(nothing)
    objective.train(training)
    return zero


def _gradient(leaf: Tensor, factor: Tensor) -> Tensor:
    """Return dL/dz of a leaf, without the factor that `backward` will multiply by again."""
    assert factor.grad is not None
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / factor.grad


def micro_batches(batch: Batch, specs: Mapping[str, ModalitySpec], most: int) -> list[Batch]:
    """Cut this rank's part into even pieces of at most ``most`` rows, equally many on every rank.

    Ranks that ran a different number of pieces would wait for each other for ever. So a rank with few rows may have
    pieces without any, on which the model runs its placeholders.
    """
    rows = len(batch.ids)
    count = torch.tensor([max(1, -(-rows // most))], device=batch.groups.device)
    if distributed():
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
    pieces = int(count)
    if pieces == 1:
        return [batch]
    ends = [rows * piece // pieces for piece in range(pieces + 1)]
    return [rows_of(batch, specs, *ends[piece : piece + 2]) for piece in range(pieces)]


class RandomState(NamedTuple):
    """State of torch's random numbers on the CPU, and on the device where that is another."""

    cpu: Tensor
    device: Tensor | None


def random_state(device: torch.device) -> RandomState:
    """Return the state of torch's random numbers."""
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return RandomState(torch.get_rng_state(), own)


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Go back to what `random_state` returned."""
    torch.set_rng_state(state.cpu)
    if state.device is not None:
        torch.get_device_module(device).set_rng_state(state.device, device)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[-1]}
