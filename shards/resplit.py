"""A further split of a data set that is built already: a new manifest, the same shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from shards.build import alone
from shards.errors import DataError
from shards.fetch import link_or_copy
from shards.fingerprint import crystal_modalities, prototype_label, structure_of
from shards.manifest import MANIFEST, Split
from shards.reader import Dataset
from shards.sealed import sealing, verify
from shards.splits import SampleInfo, SplitPlan, make_split


def add_split(folder: Path, name: str, plan: SplitPlan) -> Split:
    """Divide the samples of a data set and publish it anew, its shards linked and not rewritten.

    A crash leaves the data set as it was. The manifest, and so the data set's digest, becomes another
    one: a checkpoint that names the old digest is not resumed. Overlays still fit.

    Parameters
    ----------
    folder : Path
        A sealed folder of shards.
    name, plan : str, SplitPlan
        Name of the new split, and what it goes by.

    Returns
    -------
    Split
        What was added.

    Raises
    ------
    DataError
        Where there is a split of that name, a sample lacks what the plan goes by, or a file is damaged.
    """

    def split(dataset: Dataset) -> Split:
        return make_split(plan, sample_infos(dataset, plan), modality_vectors(dataset, plan))

    return publish_split(folder, name, split)


def publish_split(folder: Path, name: str, split_of: Callable[[Dataset], Split]) -> Split:
    """Publish a data set anew with a division that ``split_of`` makes of it; see `add_split`."""
    with alone(folder):
        # what is damaged must not be sealed anew
        files = verify(folder, error=DataError)
        dataset = Dataset(folder)
        if name in dataset.manifest.splits:
            raise DataError(f"the data set has a split '{name}' already", where=folder, do="choose another name")
        split = split_of(dataset)
        manifest = dataset.manifest.model_copy(update={"splits": {**dataset.manifest.splits, name: split}})
        with sealing(folder) as stage:
            for name_of_file in sorted(set(files) - {MANIFEST}):
                link_or_copy(folder / name_of_file, stage / name_of_file)
            (stage / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    return split


def sample_infos(dataset: Dataset, plan: SplitPlan) -> list[SampleInfo]:
    """Return what a split looks at; a prototype that is no tag is computed from the crystal."""
    crystals = crystal_modalities(dataset.modalities) if plan.by == "prototype" else []
    result = []
    for sample in dataset.select(crystals):
        tags = dict(sample.tags)
        if "prototype" not in tags and sample.arrays:
            tags["prototype"] = prototype_label(structure_of(next(iter(sample.arrays.values()))))
        result.append(SampleInfo(id=sample.id, group=sample.group, tags=tags, labels=sample.labels))
    return result


def modality_vectors(dataset: Dataset, plan: SplitPlan) -> dict[str, np.ndarray] | None:
    """Return the modality that the plan clusters by, each sample's arrays as one row."""
    if plan.modality is None:
        return None
    chosen = dataset.select([plan.modality])
    spec = chosen.modalities[plan.modality]
    if not spec.fields or any(field.ragged_axis is not None for field in spec.fields.values()):
        raise DataError(f"modality '{plan.modality}' is no vector", where=dataset.folder, why="its length differs")
    held = ((sample.id, sample.arrays[plan.modality]) for sample in chosen if sample.arrays)
    return {
        sample_id: np.concatenate([array.ravel() for _, array in sorted(arrays.items())]) for sample_id, arrays in held
    }
