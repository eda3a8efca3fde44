"""Labelled batches: streamed through encoders, or cached as the vectors of frozen ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import nan

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.fit import Batches
from shards.augment import Augmenter
from shards.batch import Batch
from shards.errors import ConfigError, DataError, suggest
from shards.orders.sequential import Sequential
from shards.orders.shuffled import Shuffled
from shards.reader import Dataset
from shards.schema import ModalitySpec
from shards.stream import BatchStream

PARTS = ("train", "val", "test")


class TargetData:
    """The samples of a data set of which any target is known, by part of a split.

    Parameters
    ----------
    dataset : Dataset
        With the modalities that any predictor will look at.
    split : str
        Which division.
    targets : tuple of str
        Which labels.
    batch_size : int
        Global batch size.
    accelerator : Accelerator
        Ranks and device.
    as_evaluated : Augmenter
        What the model sees of a sample; see `pretrain.data.as_evaluated`.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        targets: tuple[str, ...],
        batch_size: int,
        accelerator: Accelerator,
        *,
        as_evaluated: Augmenter,
    ) -> None:
        self.dataset, self.names, self.batch_size, self.accelerator = dataset, targets, batch_size, accelerator
        self.as_evaluated = as_evaluated
        for target in targets:
            if target not in dataset.manifest.labels:
                raise ConfigError(f"the data set has no label '{target}'", why=suggest(target, dataset.manifest.labels))
        self.positions: dict[str, np.ndarray] = {}
        self.targets: dict[str, Tensor] = {}
        bare = dataset.select([])
        for part in PARTS:
            labels = {int(i): bare[int(i)].labels for i in dataset.positions(split, part)}
            known = {i: [of.get(name, nan) for name in targets] for i, of in labels.items() if of.keys() & set(targets)}
            self.positions[part] = np.array(list(known), dtype=np.int64)
            self.targets[part] = torch.tensor(list(known.values()), dtype=torch.float32).reshape(-1, len(targets))
            for name, count in zip(targets, (~self.targets[part].isnan()).sum(0).tolist(), strict=True):
                if count < 2:
                    raise DataError(
                        f"part '{part}' has {count} samples with the label '{name}', at least 2 are needed",
                        where=dataset.location,
                        do="choose another split or target",
                    )
        self._vectors: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def streamed(self, modalities: Iterable[str], part: str, seed: int) -> Batches:
        """Return this rank's batches of a part, shuffled if it is ``train``."""
        stream = self._stream(modalities, part, seed=seed, shuffle=part == "train", sharded=True)

        def batches(epoch: int) -> Iterator[tuple[Batch, Tensor]]:
            for batch in stream.epoch(epoch):
                moved = batch.to(self.accelerator.device)
                yield moved, moved.labels

        return batches

    @torch.no_grad()
    def vectors(self, featurizer: nn.Module, modalities: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the frozen pretrained features (N, F) of every part, encoded once for each set of modalities."""
        if modalities not in self._vectors:
            device = self.accelerator.device
            featurizer = featurizer.to(device).eval()
            self._vectors[modalities] = {
                part: torch.cat([featurizer(batch.to(device)) for batch in self._stream(modalities, part).epoch(0)])
                for part in PARTS
            }
        return self._vectors[modalities]

    def cached(self, vectors: dict[str, Tensor], part: str, seed: int) -> Batches:
        """Return this rank's batches of a part from its cached features."""
        features, targets = vectors[part], self.targets[part].to(self.accelerator.device)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            rows = np.arange(len(targets))
            if part == "train":
                rows = np.random.default_rng([seed, epoch]).permutation(len(targets))
            for start in range(0, len(rows), self.batch_size):
                mine = rows[start : start + self.batch_size][rank::world]
                yield features[mine], targets[mine]

        return batches

    def _stream(
        self, modalities: Iterable[str], part: str, *, seed: int = 0, shuffle: bool = False, sharded: bool = False
    ) -> BatchStream:
        return BatchStream(
            self.dataset.select(list(modalities)),
            self.positions[part],
            batch_size=self.batch_size,
            seed=seed,
            rank=self.accelerator.process_index if sharded else 0,
            world=self.accelerator.num_processes if sharded else 1,
            order=Shuffled() if shuffle else Sequential(),
            augmenter=self.as_evaluated,
            label_names=self.names,
        )


def check_schema(specs: dict[str, ModalitySpec], dataset: Dataset, modalities: Iterable[str]) -> None:
    """Raise `DataError` where a data set's features are not those that a model was trained on.

    Parameters
    ----------
    specs : dict of str to ModalitySpec
        The model's schema.
    dataset : Dataset
        What is to be embedded or predicted.
    modalities : iterable of str
        Those that are looked at.
    """
    for name in modalities:
        if name not in specs:
            raise ConfigError(f"the model has no modality '{name}'", why=suggest(name, specs))
        if name not in dataset.modalities:
            raise DataError(
                f"the data set has no modality '{name}'", where=dataset.location, why=suggest(name, dataset.modalities)
            )
        difference = specs[name].difference(dataset.modalities[name])
        if difference:
            raise DataError(
                "the data set's schema is not the model's",
                where=dataset.location,
                why=difference,
                do="build the shards with the feature parameters of the model's schema.json",
            )
