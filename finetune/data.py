"""Labelled batches: streamed through encoders, or from the cached outputs of frozen ones."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import nan

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.encodings import EncodedRows
from finetune.featurizer import Featurizer
from finetune.fit import Batches, Example
from finetune.fold_parts import groups_of
from finetune.heads.base import Head
from finetune.targets import Components, Target, find_target
from shards.augment import Augment, Augmenter
from shards.batch import Batch
from shards.errors import ConfigError, DataError, suggest
from shards.orders.sequential import Sequential
from shards.orders.shuffled import Shuffled
from shards.reader import Dataset
from shards.schema import ModalitySpec
from shards.statistics import standard_deviations
from shards.stream import BatchStream

PARTS = ("train", "val", "test")
TRAIN = "train"


@dataclass(frozen=True)
class Rows:
    """N samples of a part.

    Attributes
    ----------
    positions : ndarray
        (N,) places in the data set.
    ids : tuple of str
        Their N ids.
    targets : Tensor
        (N, T), NaN where unknown.
    offset : Tensor
        (N, T), the part of the targets that is known in use (``delta``), NaN where it is not; zeros without ``delta``.
    """

    positions: np.ndarray
    ids: tuple[str, ...]
    targets: Tensor
    offset: Tensor

    @property
    def learned(self) -> Tensor:
        """What a head is to predict (N, T), NaN where unknown."""
        return self.targets - self.offset

    @property
    def labelled(self) -> Tensor:
        """Which rows have any known target (N,)."""
        return ~self.learned.isnan().all(dim=1)

    def take(self, index: Tensor) -> Rows:
        """Return some rows."""
        ids = tuple(self.ids[i] for i in index.tolist())
        return Rows(self.positions[index.numpy()], ids, self.targets[index], self.offset[index])


class TargetData:
    """The samples of a data set of which any target is known, by part of a split.

    Parameters
    ----------
    dataset : Dataset
        With the modalities that any predictor will look at.
    split : str
        Which division.
    targets : tuple of str
        Which labels, or modalities; `names` are those of the columns that these make.
    batch_size : int
        Global batch size.
    accelerator : Accelerator
        Ranks and device.
    as_evaluated : Augmenter
        What the model sees of a sample; see `pretrain.data.as_evaluated`.
    delta : tuple of str
        Labels, one a target, of which the differences to the targets are learned; empty: the targets themselves.
    unlabelled : bool
        Training samples without any known target are in the training part too.
    components : callable
        Which components of a target of several numbers are predicted; see `finetune.heads.base.Head.parts_of`.
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
        delta: tuple[str, ...] = (),
        unlabelled: bool = False,
        components: Components = Head.parts_of,
    ) -> None:
        self.dataset, self.batch_size, self.accelerator = dataset, batch_size, accelerator
        self.found = self._find(targets, components)
        self.names = tuple(column for target in self.found for column in target.columns)
        self.as_evaluated, self.unlabelled, self.split = as_evaluated, unlabelled, split
        self.parts: dict[str, Rows] = {}
        for part, rows in self._read(split, delta).items():
            keep_all = unlabelled and part == TRAIN
            keep = torch.arange(len(rows.ids)) if keep_all else rows.labelled.nonzero().squeeze(1)
            self.parts[part] = rows.take(keep)
            self._check(part)
        self._encoded: dict[Hashable, EncodedRows] = {}
        self._scales: dict[str, dict[str, np.ndarray]] = {}

    def _read(self, split: str, delta: tuple[str, ...]) -> dict[str, Rows]:
        """Return all rows of every part."""
        for name in delta:
            if name not in self.dataset.manifest.labels:
                raise ConfigError(
                    f"the data set has no label '{name}'", why=suggest(name, self.dataset.manifest.labels)
                )
        if delta and len(delta) != len(self.names):
            raise ConfigError(
                f"'delta' is of {len(delta)} numbers, the targets are {len(self.names)}",
                where="delta",
                do="name targets of one number each",
            )
        bare = self.dataset.select([target.name for target in self.found if target.modality])
        count = len(self.names)
        parts = {}
        for part in PARTS:
            found = [(int(i), bare[int(i)]) for i in self._places(split, part)]
            table = [
                [*chain.from_iterable(target.values(sample) for target in self.found)]
                + [sample.labels.get(name, nan) for name in delta]
                for _, sample in found
            ]
            values = torch.tensor(table, dtype=torch.float32).reshape(len(found), -1)
            offset = values[:, count:] if delta else torch.zeros(len(found), count)
            # without its lower part, a target cannot be predicted either
            values = values[:, :count].masked_fill(offset.isnan(), nan)
            positions = np.array([i for i, _ in found], np.int64)
            parts[part] = Rows(positions, tuple(s.id for _, s in found), values, offset)
        return parts

    def _find(self, names: tuple[str, ...], components: Components) -> tuple[Target, ...]:
        """Return what the targets are."""
        return tuple(find_target(name, self.dataset, components) for name in names)

    def _places(self, split: str, part: str) -> np.ndarray:
        """Return the places of a part in the data set, of labelled samples and others."""
        return self.dataset.positions(split, part)

    @cached_property
    def groups(self) -> list[str]:
        """Of every sample of the data set, what inner folds of the training part must not part it from."""
        return groups_of(self.dataset.manifest.split(self.split).by, self.dataset)

    @property
    def contest(self) -> dict[str, str]:
        """What sets scores on these rows apart from others, beside data set, split and metric."""
        return {}

    def materials(self, part: str) -> np.ndarray:
        """Return the places in the data set of what is encoded for a part."""
        return self.parts[part].positions

    def places(self, part: str, numbers: Tensor) -> Tensor:
        """Return which of `materials` the network reads for some rows of a part."""
        return numbers

    def features(self, part: str, materials: np.ndarray) -> np.ndarray:
        """Return what an estimator sees of the rows of a part (N, F), from the features of `materials`."""
        return materials

    def _check(self, part: str) -> None:
        for name, count in zip(self.names, (~self.parts[part].learned.isnan()).sum(0).tolist(), strict=True):
            if count < 2:
                raise DataError(
                    f"part '{part}' has {count} samples with the label '{name}', at least 2 are needed",
                    where=self.dataset.location,
                    do="choose another split or target",
                )

    @property
    def targets(self) -> dict[str, Tensor]:
        """Targets (N, T) by part."""
        return {part: rows.targets for part, rows in self.parts.items()}

    @property
    def positions(self) -> dict[str, np.ndarray]:
        """Places in the data set (N,) by part."""
        return {part: rows.positions for part, rows in self.parts.items()}

    def training(self, fraction: float, seed: int) -> Tensor:
        """Return which training rows may show their labels, in order: a share of the labelled ones.

        The subsets of one seed are nested: those of 1 % are among those of 5 %.
        """
        labelled = self.parts[TRAIN].labelled.nonzero().squeeze(1)
        if fraction >= 1:
            return labelled
        order = np.random.default_rng([seed, len(labelled)]).permutation(len(labelled))
        count = max(2, math.ceil(fraction * len(labelled)))
        return labelled[torch.from_numpy(np.sort(order[:count]))]

    def shown(self, part: str, chosen: Tensor | None = None) -> tuple[Tensor, Rows]:
        """Return the rows of a part that are gone through, by number and as such, labels of rows not chosen hidden."""
        rows = self.parts[part]
        if chosen is None:
            return torch.arange(len(rows.ids)), rows
        if not self.unlabelled:
            return chosen, rows.take(chosen)
        hidden = torch.ones(len(rows.ids), dtype=torch.bool)
        hidden[chosen] = False
        return torch.arange(len(rows.ids)), replace(rows, targets=rows.targets.masked_fill(hidden[:, None], nan))

    def streamed(
        self,
        modalities: Iterable[str],
        part: str,
        seed: int,
        *,
        chosen: Tensor | None = None,
        augments: Mapping[str, Augment] | None = None,
        twins: bool = False,
    ) -> Batches:
        """Return this rank's batches of a part, read from the shards and shuffled if it is ``train``.

        Parameters
        ----------
        modalities : iterable of str
            What is read.
        part : str
            ``train``, ``val`` or ``test``.
        seed : int
            Of order and augmentation.
        chosen : Tensor, optional
            See `shown`.
        augments : mapping of str to Augment, optional
            Variation of the training samples; see `shards.augment`.
        twins : bool
            Every batch comes with the same rows, varied a second time.
        """
        modalities = list(modalities)
        _, rows = self.shown(part, chosen)
        place = {name: i for i, name in enumerate(rows.ids)}
        stream = BatchStream(
            self.dataset.select(modalities),
            rows.positions,
            batch_size=self.batch_size,
            seed=seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            order=Shuffled() if part == TRAIN else Sequential(),
            augmenter=self._augmenter(modalities, augments, seed) if augments else self.as_evaluated,
            views=2 if twins else 1,
        )

        def batches(epoch: int) -> Iterator[Example]:
            for batch in stream.epoch(epoch):
                mine = torch.tensor([place[name] for name in batch.ids], dtype=torch.int64)
                moved = batch.to(self.accelerator.device)
                targets, offset = (values[mine].to(self.accelerator.device) for values in (rows.targets, rows.offset))
                yield Example(moved, targets, offset, moved.twin)

        return batches

    def encoded(
        self, featurizer: Featurizer, modalities: tuple[str, ...], key: Hashable = None
    ) -> dict[str, EncodedRows]:
        """Return what frozen encoders make of every part, computed once for each set of modalities.

        ``key`` tells apart encoders of the same modalities with other weights.
        """
        featurizer.to(self.accelerator.device)
        found = {}
        for part in PARTS:
            name = (part, modalities, featurizer.reads_tokens, key)
            if name not in self._encoded:
                self._encoded[name] = EncodedRows.of(featurizer, self._stream(modalities, self.materials(part)))
            found[part] = self._encoded[name]
        return found

    def cached(
        self,
        encoded: Mapping[str, EncodedRows],
        part: str,
        seed: int,
        *,
        chosen: Tensor | None = None,
        noise: float = 0.0,
        twins: bool = False,
    ) -> Batches:
        """Return this rank's batches of a part from cached encodings; ``noise``: see `EncodedRows.noisy`."""
        numbers, rows = self.shown(part, chosen)
        device = self.accelerator.device
        targets, offset = rows.targets.to(device), rows.offset.to(device)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        source = encoded[part]
        deviations = {name: column.deviations() for name, column in encoded[TRAIN].columns.items()} if noise else {}

        def batches(epoch: int) -> Iterator[Example]:
            order = np.arange(len(numbers))
            if part == TRAIN:
                order = np.random.default_rng([seed, epoch]).permutation(len(numbers))
            views = [
                source.noisy(noise, deviations, _key(seed, epoch, view)) if noise else source
                for view in range(2 if twins else 1)
            ]
            for start in range(0, len(order), self.batch_size):
                mine = torch.from_numpy(order[start : start + self.batch_size][rank::world])
                inputs = [view.rows(self.places(part, numbers[mine]).to(device)) for view in views]
                here = mine.to(device)
                yield Example(inputs[0], targets[here], offset[here], inputs[1] if twins else None)

        return batches

    def batches(self, modalities: Iterable[str], part: str, label_names: tuple[str, ...] = ()) -> Iterator[Batch]:
        """Yield all rows of a part in order, on every rank the same, on this rank's device."""
        return self._stream(modalities, self.parts[part].positions, label_names)

    def _stream(
        self, modalities: Iterable[str], positions: np.ndarray, label_names: tuple[str, ...] = (), *, rows: int = 1
    ) -> Iterator[Batch]:
        stream = BatchStream(
            self.dataset.select(list(modalities)),
            positions,
            batch_size=rows * self.batch_size,
            order=Sequential(),
            augmenter=self.as_evaluated,
            label_names=label_names,
        )
        for batch in stream.epoch(0):
            yield batch.to(self.accelerator.device)

    def _augmenter(self, modalities: list[str], augments: Mapping[str, Augment], seed: int) -> Augmenter:
        """Return the variation of training samples, over what pretraining's own crop leaves."""
        mine = {}
        for name in modalities:
            seen = self.as_evaluated.augments.get(name, Augment())
            mine[name] = augments.get(name, Augment()).model_copy(update={"crop": seen.crop})
            if mine[name].gaussian_noise and name not in self._scales:
                self._scales[name] = standard_deviations(self.dataset, self.parts[TRAIN].positions, name)
        specs = {name: self.dataset.modalities[name] for name in modalities}
        scales = {name: scale for name, scale in self._scales.items() if name in mine}
        return Augmenter(specs, mine, seed=seed, scales=scales)


def _key(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


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
