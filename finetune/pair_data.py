"""Rows that are pairs of materials: both partners are encoded once, and side by side they are what a head reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data import PARTS, Rows, TargetData
from finetune.fit import Batches
from finetune.pair_folds import pair_parts
from finetune.pair_table import PairsConfig, read_pairs
from finetune.targets import Components, Target
from shards.batch import Batch
from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from shards.sealed import sha256


class PairData(TargetData):
    """Labelled pairs of samples of a data set, by part; `Rows.positions` are (N, 2).

    Batches hold 2 B materials, of which two that follow each other are a pair.

    Parameters
    ----------
    dataset : Dataset
        Of the materials.
    pairs : PairsConfig
        Which pairs, with their targets, and how they are divided.
    split, targets, batch_size, accelerator, options
        As `TargetData` takes them, but no ``delta``; the targets are columns of the table of pairs.
    """

    def __init__(self, dataset: Dataset, *args: Any, pairs: PairsConfig, **options: Any) -> None:
        self.pairs = pairs
        super().__init__(dataset, *args, **options)
        self._materials = {part: np.unique(rows.positions) for part, rows in self.parts.items()}

    def _find(self, names: tuple[str, ...], components: Components) -> tuple[Target, ...]:
        return tuple(Target(name) for name in names)

    def _read(self, split: str, delta: tuple[str, ...]) -> dict[str, Rows]:
        bare = self.dataset.select([])
        place = {sample.id: position for position, sample in enumerate(bare)}
        table = read_pairs(Path(self.pairs.file), self.names, place)
        parts = self.dataset.manifest.split(split).ids
        part_of = {name: part for part in PARTS for name in parts.get(part, ())}
        rows = pair_parts(self.pairs.leave, table.pairs, part_of, seed=self.pairs.seed)
        values = torch.from_numpy(table.values).float()
        positions = np.array([[place[name] for name in pair] for pair in table.pairs], np.int64).reshape(-1, 2)
        names = [f"{a} + {b}" for a, b in table.pairs]
        # how many pairs lie across parts, and are used in none
        self.unused = len(names) - sum(map(len, rows.values()))
        return {
            part: Rows(positions[at], tuple(names[i] for i in at), values[at], torch.zeros_like(values[at]))
            for part, at in rows.items()
        }

    def _check(self, part: str) -> None:
        try:
            super()._check(part)
        except DataError:
            raise DataError(
                f"part '{part}' has {len(self.parts[part].ids)} labelled pairs; each target needs 2 at least",
                where=self.pairs.file,
                why=f"leave = '{self.pairs.leave}' leaves {self.unused} pairs in no part",
                do="give more pairs, or another 'leave': 'entity', 'pair'",
            ) from None

    @property
    def contest(self) -> dict[str, str]:
        """The table of pairs and how it is divided."""
        return {"pairs_sha256": sha256(Path(self.pairs.file)), "pairs_leave": self.pairs.leave}

    def materials(self, part: str) -> np.ndarray:
        """Return the places of the materials of a part's pairs, each once."""
        return self._materials[part]

    def places(self, part: str, numbers: Tensor) -> Tensor:
        """Return the (2 B,) places among `materials` of both partners of B pairs."""
        pairs = self.parts[part].positions[numbers.numpy()]
        return torch.from_numpy(np.searchsorted(self._materials[part], pairs).reshape(-1))

    def features(self, part: str, materials: np.ndarray) -> np.ndarray:
        """Return sum and absolute difference of both partners (N, 2 F): the same in either order."""
        first, second = materials[np.searchsorted(self._materials[part], self.parts[part].positions)].swapaxes(0, 1)
        return np.concatenate([first + second, np.abs(first - second)], axis=1)

    def batches(self, modalities: Iterable[str], part: str, label_names: tuple[str, ...] = ()) -> Iterator[Batch]:
        """Yield all pairs of a part in order, as 2 B materials."""
        return self._stream(modalities, self.parts[part].positions.reshape(-1), label_names, rows=2)

    def streamed(self, *args: Any, **options: Any) -> Batches:
        """Refuse: encoders that are trained would have to see both partners of every pair in every step."""
        raise ConfigError("the encoders of pairs are not trained", do="strategy = 'frozen', or an estimator")
