"""From the recipe's [data] table to the samples of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.config import DataConfig
from shards.mixture import Member, Mixture
from shards.reader import Dataset


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
