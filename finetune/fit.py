"""Training one predictor: a loop over features that are cached, or over batches through the encoders."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.heads.base import Head
from finetune.metrics import SELECTION, better, evaluate, worst
from shards.errors import DataError

Batches = Callable[[int], Iterable[tuple[object, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Optimisation of one predictor: parameter groups, epochs, clipping."""

    groups: list[dict[str, object]]
    epochs: int
    weight_decay: float
    grad_clip: float


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
        Epoch to this rank's batches ``(inputs, targets)``; the same number on every rank.
    schedule : Schedule
        Cosine decay over the epochs, after a tenth of them as warm-up.
    accelerator : Accelerator
        Devices and ranks.

    Returns
    -------
    dict of str to float
        Validation metrics of the best epoch, and ``epoch``.
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
        for inputs, targets in train(epoch):
            loss = head.loss(model(inputs), targets) * share(targets, accelerator)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), schedule.grad_clip)
            optimizer.step()
        predictions, known = predict(model, head, validation, accelerator)
        values = evaluate(head.task, predictions, known)
        if better(metric, values[metric], best[metric]):
            best = {**values, "epoch": float(epoch)}
            weights = copy.deepcopy(network.state_dict())
    network.load_state_dict(weights)
    return best


@torch.no_grad()
def predict(model: nn.Module, head: Head, batches: Batches, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Return predicted values and targets (N, T) of all ranks, on the CPU; of an unknown target NaN."""
    model.eval()
    pairs = [(head.predict(model(inputs)).value, targets) for inputs, targets in batches(0)]
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


def share(targets: Tensor, accelerator: Accelerator) -> Tensor | float:
    """Return the weight that makes the mean over ranks of their mean losses the mean over all labelled rows."""
    if accelerator.num_processes == 1:
        return 1.0
    known = (~targets.isnan()).sum().float()
    everywhere = accelerator.reduce(known.clone(), reduction="sum")
    return known * accelerator.num_processes / everywhere.clamp(min=1)


def learning_rate_factor(epoch: int, epochs: int) -> float:
    """Return the share of the peak learning rate: linear over the first tenth, then half a cosine to 0."""
    warmup = max(1, epochs // 10)
    if epoch < warmup:
        return (epoch + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
