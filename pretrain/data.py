"""From the recipe to the samples of a run: the data set that it names, its batches, and what evaluation sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pretrain.config import DataConfig, Recipe
from shards.augment import Augmenter
from shards.mixture import Member, Mixture
from shards.orders.sequential import Sequential
from shards.reader import Dataset
from shards.schema import ModalitySpec
from shards.stream import BatchStream


def open_data(config: DataConfig, modalities: Sequence[str], find: Callable[[str], Path | str]) -> Dataset | Mixture:
    """Open the data set of a recipe with all its modalities, or its mix with those that are trained on.

    What a mix is not trained on may differ between its data sets.

    Parameters
    ----------
    config : DataConfig
        The recipe's ``[data]``.
    modalities : sequence of str
        What is trained on.
    find : callable
        From a path of the recipe to a folder or URL of shards: `shards.locate.locate`, or `shards.locate.existing` on
        ranks other than the first.
    """

    def opened(path: str, overlays: tuple[str, ...]) -> Dataset:
        return Dataset(find(path), overlays=[find(overlay) for overlay in overlays])

    if config.path is not None:
        return opened(config.path, config.overlays)
    members = []
    for entry in config.mix:
        dataset = opened(entry.path, entry.overlays)
        members.append(Member(name=entry.name or dataset.name, dataset=dataset, weight=entry.weight))
    return Mixture(members, modalities)


def batches_of(
    recipe: Recipe,
    dataset: Dataset | Mixture,
    part: Literal["train", "val"],
    augmenter: Augmenter,
    *,
    rank: int,
    world: int,
    workers: int,
    views: int = 1,
) -> BatchStream:
    """Return one rank's part of the batches of a run: training in the recipe's order, validation in that of the data.

    Parameters
    ----------
    recipe, dataset : Recipe, Dataset or Mixture
        With the recipe's modalities selected.
    part : str
        ``train`` or ``val``.
    augmenter : Augmenter
        What happens to each sample between reading and collation.
    rank, world : int
        This rank and the number of ranks.
    workers : int
        Threads that prepare batches ahead.
    views : int
        2: every batch has a twin.
    """
    return BatchStream(
        dataset,
        dataset.positions(recipe.data.split, part),
        batch_size=recipe.data.batch_size,
        seed=recipe.seed,
        rank=rank,
        world=world,
        order=recipe.data.training_order() if part == "train" else Sequential(),
        budget=recipe.data.budget,
        augmenter=augmenter,
        views=views,
        workers=workers,
    )


def as_evaluated(recipe: Recipe, specs: Mapping[str, ModalitySpec]) -> Augmenter:
    """Return what is done to samples wherever nothing is to vary: in validation, fine-tuning and use.

    Parameters
    ----------
    recipe : Recipe
        Of the pretraining; its encoders read what its augmentation leaves, pictures of the size of the crop.
    specs : mapping of str to ModalitySpec
        The modalities of the samples as stored: all of the recipe's, or some.
    """
    augments = {name: recipe.modalities[name].augment for name in specs if name in recipe.modalities}
    return Augmenter(specs, augments, training=False)
