"""Labelled rows of one fold of several: what frozen encoders make of a material is computed once for all folds."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from math import isnan
from typing import Any

import numpy as np
import torch

from finetune.data import PARTS, TargetData
from finetune.encodings import EncodedRows
from finetune.featurizer import Featurizer
from finetune.fold_parts import FoldParts, RecipeFolds, fold_parts, groups_of
from finetune.targets import find_target
from shards.errors import DataError
from shards.reader import Dataset


class FoldData(TargetData):
    """Samples of one fold.

    Parameters
    ----------
    dataset : Dataset
        Of all folds.
    fold : FoldParts
        Which samples.
    everything : ndarray
        (N,) ascending places of the samples of all folds.
    shared : dict
        Encodings of these, for all folds.
    by : str
        What the folds go by.
    args, options
        As `TargetData` takes them after the split.
    """

    def __init__(
        self,
        dataset: Dataset,
        fold: FoldParts,
        *args: Any,
        everything: np.ndarray,
        shared: dict[Hashable, EncodedRows],
        by: str,
        **options: Any,
    ) -> None:
        self.fold, self.everything, self.shared, self.by = fold, everything, shared, by
        super().__init__(dataset, fold.name, *args, **options)

    def _places(self, split: str, part: str) -> np.ndarray:
        return self.fold.parts[part]

    @cached_property
    def groups(self) -> list[str]:
        """Of every sample, what inner folds must not part it from, as the folds do not."""
        return groups_of(self.by, self.dataset)

    def encoded(
        self, featurizer: Featurizer, modalities: tuple[str, ...], key: Hashable = None
    ) -> dict[str, EncodedRows]:
        """Return what frozen encoders, to which nothing is fitted here, make of every part of the fold."""
        featurizer.to(self.accelerator.device)
        name = (modalities, featurizer.reads_tokens, key)
        if name not in self.shared:
            self.shared[name] = EncodedRows.of(featurizer, self._stream(modalities, self.everything))
        whole = self.shared[name]
        found = {}
        for part in PARTS:
            index = torch.from_numpy(np.searchsorted(self.everything, self.materials(part)))
            found[part] = whole.take(index.to(self.accelerator.device))
        return found


def fold_data(
    plan: RecipeFolds, dataset: Dataset, targets: tuple[str, ...], *args: Any, **options: Any
) -> dict[str, TargetData]:
    """Return the data of every fold by its name; ``args`` and ``options`` as `TargetData` takes them after the targets.

    The folds divide the samples that have any of the targets, or all of them where ``unlabelled`` ones take part.
    """
    found_targets = [find_target(name, dataset, options["components"]) for name in targets]
    bare = dataset.select([target.name for target in found_targets if target.modality])
    rows = [
        number
        for number, sample in enumerate(bare)
        if options.get("unlabelled")
        or any(not isnan(value) for target in found_targets for value in target.values(sample))
    ]
    everything = np.array(rows, np.int64)
    common: dict[str, Any] = {"everything": everything, "shared": {}, "by": plan.by}
    found: dict[str, TargetData] = {}
    for fold in fold_parts(plan, dataset, everything):
        try:
            found[fold.name] = FoldData(dataset, fold, targets, *args, **common, **options)
        except DataError as error:
            raise DataError(
                f"{fold.name}: {error.what}", where=error.where, why=error.why, do="fewer folds, or a greater folds.val"
            ) from None
    return found
