"""Training one predictor: a loop over encodings that are cached, or over batches through the encoders."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.consistency import Consistency
from finetune.heads.base import Head
from finetune.metrics import SELECTION, better, evaluate, worst
from shards.errors import DataError


class Example(NamedTuple):
    """One rank's part of a batch.

    Attributes
    ----------
    inputs : object
        What the network takes.
    targets : Tensor
        (B, T), NaN where unknown.
    offset : Tensor, optional
        (B, T) known part of the targets: the head learns the rest.
    twin : object, optional
        The same rows varied a second time.
    """

    inputs: Any
    targets: Tensor
    offset: Tensor | None = None
    twin: Any = None

    @property
    def learned(self) -> Tensor:
        """What the head is to predict (B, T)."""
        return self.targets if self.offset is None else self.targets - self.offset


Batches = Callable[[int], Iterable[tuple[Any, ...]]]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Optimisation of one predictor.

    Attributes
    ----------
    groups : list of dict
        Parameter groups with their peak learning rates.
    epochs : int
        Cosine decay over these, after a tenth of them as warm-up.
    weight_decay, grad_clip : float
        Of AdamW, where a group has none of its own; largest norm of the gradient.
    accumulate : int
        Batches a step; the loss is the mean over the known targets of all of them.
    begin_epoch : callable, optional
        Gets the epoch, after the network was put into training mode.
    consistency : Consistency, optional
        A term that compares a batch with its twin.
    auxiliary : callable, optional
        Returns what the network adds to the loss of the batch that it has just seen, or None.
    """

    groups: list[dict[str, Any]]
    epochs: int
    weight_decay: float
    grad_clip: float
    accumulate: int = 1
    begin_epoch: Callable[[int], None] | None = None
    consistency: Consistency | None = None
    auxiliary: Callable[[], Tensor | None] | None = None


def fit(
    network: nn.Module,
    head: Head,
    train: Batches,
    validation: Batches,
    *,
    schedule: Schedule,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Train a network and leave it with the weights of its best epoch on the validation part.

    Parameters
    ----------
    network : nn.Module
        Maps a batch to raw outputs.
    head : Head
        The part of the network that gives loss and predictions.
    train, validation : callable
        Epoch to this rank's batches, tuples as `Example`; the same number on every rank.
    schedule : Schedule
        Optimisation.
    accelerator : Accelerator
        Devices and ranks.

    Returns
    -------
    dict of str to float
        Validation metrics of the best epoch, and ``epoch``.

    Raises
    ------
    DataError
        Where the predictions become infinite, or the metric is undefined on the validation part in every epoch.
    """
    metric = SELECTION[head.task]
    optimizer = torch.optim.AdamW(schedule.groups, weight_decay=schedule.weight_decay)
    base = [group["lr"] for group in optimizer.param_groups]
    model, optimizer = accelerator.prepare(network, optimizer)
    best: dict[str, float] = {metric: worst(metric)}
    weights = copy.deepcopy(network.state_dict())
    for epoch in range(schedule.epochs):
        factor = learning_rate_factor(epoch, schedule.epochs)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * factor
        model.train()
        if schedule.begin_epoch is not None:
            schedule.begin_epoch(epoch)
        _steps(model, head, train(epoch), epoch, optimizer, schedule, accelerator)
        predictions, known = predict(model, head, validation, accelerator)
        values = evaluate(head.task, predictions, known)
        if better(metric, values[metric], best[metric]):
            best = {**values, "epoch": float(epoch)}
            weights = copy.deepcopy(network.state_dict())
    if "epoch" not in best:
        raise _undefined(metric, head.task)
    network.load_state_dict(weights)
    accelerator.free_memory()
    return best


def _steps(
    model: nn.Module,
    head: Head,
    batches: Iterable[tuple[Any, ...]],
    epoch: int,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    accelerator: Accelerator,
) -> None:
    """Take the optimizer's steps of one epoch."""
    for examples in _runs(batches, schedule.accumulate):
        optimizer.zero_grad()
        _backward(model, head, examples, epoch, schedule, accelerator)
        accelerator.clip_grad_norm_(model.parameters(), schedule.grad_clip)
        optimizer.step()


def _undefined(metric: str, task: str) -> DataError:
    """Return the error for a validation part by which no epoch can be chosen."""
    return DataError(
        f"no epoch can be chosen: {metric} of the validation part is undefined",
        why="all of its targets are of one class" if task != "regression" else "it is not a number",
        do="choose a split whose part 'val' holds every class",
    )


def _runs(batches: Iterable[tuple[Any, ...]], length: int) -> Iterator[list[Example]]:
    """Cut batches into runs of ``length``, of which the last may be shorter."""
    rest = iter(batches)
    while run := [Example(*batch) for batch in islice(rest, length)]:
        yield run


def _backward(
    model: nn.Module,
    head: Head,
    examples: Sequence[Example],
    epoch: int,
    schedule: Schedule,
    accelerator: Accelerator,
) -> None:
    """Add up the gradient of the mean loss over the known targets of several batches of all ranks."""
    consistency = schedule.consistency
    strength = 0.0 if consistency is None else consistency.strength(epoch)
    shares = weights_of([(~example.learned.isnan()).sum() for example in examples], accelerator)
    rows = shares
    if strength:
        rows = weights_of([example.learned.new_tensor(len(example.targets)) for example in examples], accelerator)
    for example, share, part in zip(examples, shares, rows, strict=True):
        last = example is examples[-1]
        with nullcontext() if last else accelerator.no_sync(model):
            other = None
            if strength:
                with torch.no_grad():
                    other = model(example.twin)
            raw = model(example.inputs)
            loss = head.loss(raw, example.learned) * share
            if consistency is not None and other is not None:
                loss = loss + strength * part * consistency.distance(head.task, raw, other)
            added = None if schedule.auxiliary is None else schedule.auxiliary()
            if added is not None:
                loss = loss + added / len(examples)
            accelerator.backward(loss)


@torch.no_grad()
def predict(model: nn.Module, head: Head, batches: Batches, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Return predicted values and targets (N, T) of all ranks, on the CPU; of an unknown target NaN."""
    model.eval()
    pairs = []
    for example in (Example(*batch) for batch in batches(0)):
        value = head.predict(model(example.inputs)).value
        # of a target that is unknown, so may be the offset
        pairs.append((value if example.offset is None else value + example.offset.nan_to_num(), example.targets))
    predictions, targets = (torch.cat(column) for column in zip(*pairs, strict=True))
    # ranks may hold different numbers of rows; a row of which no target is known, padding too, counts for nothing
    both = torch.stack([predictions, targets], dim=1)
    both = accelerator.pad_across_processes(both, dim=0, pad_index=float("nan"))
    both = accelerator.gather(both).cpu()
    both = both[~both[:, 1].isnan().all(dim=1)]
    # after the gathering, so that all ranks decide alike
    if not both[:, 0].isfinite().all():
        raise DataError("the predictor diverged: it predicts NaN or infinity", do="lower the learning rates of [optim]")
    return both[:, 0], both[:, 1]


def weights_of(counts: Sequence[Tensor], accelerator: Accelerator) -> list[Tensor]:
    """Return the weights that make the mean over ranks of weighted means the mean over everything that was counted.

    Parameters
    ----------
    counts : sequence of Tensor
        Of each of the batches of a step, 0-dim: over how much this rank's mean is.
    accelerator : Accelerator
        Ranks.
    """
    mine = torch.stack(list(counts)).float()
    everywhere = mine.sum()
    if accelerator.num_processes > 1:
        everywhere = accelerator.reduce(everywhere.clone(), reduction="sum")
    return list(mine * accelerator.num_processes / everywhere.clamp(min=1))


def learning_rate_factor(epoch: int, epochs: int) -> float:
    """Return the share of the peak learning rate: linear over the first tenth, then half a cosine to 0."""
    warmup = max(1, epochs // 10)
    if epoch < warmup:
        return (epoch + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
