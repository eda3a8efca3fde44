"""The parts of a run that train: model, moving average, streams and engine, built as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pretrain.automatic import settings_for
from pretrain.config import Recipe
from pretrain.data import as_evaluated, batches_of
from pretrain.ema import MovingAverage
from pretrain.engine import Engine
from pretrain.model import MultimodalModel
from pretrain.optimizer import autocast_type
from pretrain.parts import Fitted
from pretrain.prepare import prepare
from shards.augment import Augmenter
from shards.errors import DataError
from shards.mixture import Mixture
from shards.reader import Dataset
from shards.stream import BatchStream


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What `build` returns.

    Attributes
    ----------
    model : MultimodalModel
        What learns.
    average : MovingAverage, optional
        Of its weights, where the recipe wants one.
    training, validation : BatchStream
        This rank's part of the batches.
    total_steps : int
        Length of the run.
    engine : Engine
        The model under DeepSpeed.
    """

    model: MultimodalModel
    average: MovingAverage | None
    training: BatchStream
    validation: BatchStream
    total_steps: int
    engine: Engine


def build(
    recipe: Recipe,
    dataset: Dataset | Mixture,
    fitted: Fitted,
    noise_scales: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    resumed: bool,
    device: torch.device,
    report: Callable[[str], None],
) -> Parts:
    """Build the parts of a run; every rank calls it.

    Parameters
    ----------
    recipe, dataset : Recipe, Dataset or Mixture
        What is trained, on what; with the recipe's modalities selected.
    fitted, noise_scales : dict
        From `pretrain.setup`, or a checkpoint.
    settings : mapping
        DeepSpeed keys that win over the recipe's.
    resumed : bool
        Whether a checkpoint will be loaded.
    device : torch.device
        Of this rank.
    report : callable
        Gets what the user should know.
    """
    torch.manual_seed(recipe.seed)
    model = MultimodalModel(recipe, dataset.modalities, fitted, autocast_type(recipe.optim, device)).to(device)
    for line in prepare(model, recipe, resumed=resumed):
        report(line)
    average = MovingAverage(model, recipe.optim.ema) if recipe.optim.ema else None
    augmenter = _training_augmenter(recipe, dataset, noise_scales, keep=model.objective.anchors)
    here = {"rank": dist.get_rank(), "world": dist.get_world_size(), "workers": recipe.data.workers}
    training = batches_of(recipe, dataset, "train", augmenter, views=model.views, **here)
    validation = batches_of(recipe, dataset, "val", as_evaluated(recipe, dataset.modalities), **here)
    _refuse_useless_validation(recipe, dataset, validation.positions)
    if training.larger_than_budget:
        report(f"{training.larger_than_budget} samples exceed the budget, each will be a batch of its own")
    warmup_steps, total_steps = training.total(recipe.optim.warmup_epochs), training.total(recipe.optim.epochs)
    keys, lines = settings_for(
        recipe, settings, world=here["world"], warmup_steps=warmup_steps, total_steps=total_steps, device=device
    )
    for line in lines:
        report(line)
    engine = Engine(
        model,
        recipe.optim,
        batch_size=recipe.data.batch_size,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        seed=recipe.seed,
        settings=keys,
        scales=model.lr_scales,
    )
    return Parts(
        model=model, average=average, training=training, validation=validation, total_steps=total_steps, engine=engine
    )


def _training_augmenter(
    recipe: Recipe, dataset: Dataset | Mixture, scales: Mapping[str, Any], *, keep: Set[str]
) -> Augmenter:
    """Return what is done to a training sample between reading and collation; an anchor is never dropped."""
    return Augmenter(
        dataset.modalities,
        {name: config.augment for name, config in recipe.modalities.items()},
        seed=recipe.seed,
        scales=scales,
        keep=keep,
    )


def _refuse_useless_validation(recipe: Recipe, dataset: Dataset | Mixture, positions: np.ndarray) -> None:
    """Refuse a validation part on which nothing can be retrieved, before any step is made; by the indices alone."""
    needed = len(recipe.modalities) if recipe.evaluation.complete_only else 2
    held = np.sum([dataset.presence(name)[positions] for name in recipe.modalities], axis=0)
    usable = int((held >= needed).sum())
    if usable >= 2:
        return
    raise DataError(
        f"the validation part has {usable} samples with {needed} of the modalities, retrieval needs 2",
        where=dataset.location,
        do="--set evaluation.complete_only=false, or another split",
    )
