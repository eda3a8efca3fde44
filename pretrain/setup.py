"""What a run needs before its model is built, the same on all ranks, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from pretrain.agreement import on_first_rank
from pretrain.checkpoint import Checkpoints
from pretrain.config import Recipe
from pretrain.data import open_data
from pretrain.parts import check_modalities
from shards.errors import CheckpointError
from shards.locate import existing, locate
from shards.mixture import Mixture
from shards.reader import Dataset
from shards.statistics import standard_deviations


def open_on_all_ranks(recipe: Recipe) -> Dataset | Mixture:
    """Open the data; what is not there yet is made by the first rank, while the others wait."""
    names = list(recipe.modalities)
    first = dist.get_rank() == 0
    dataset = open_data(recipe.data, names, locate) if first else None
    dist.barrier()
    if dataset is None:
        dataset = open_data(recipe.data, names, existing)
    check_modalities(recipe, dataset.modalities)
    return dataset.select(names)


def noise_scales(recipe: Recipe, dataset: Dataset | Mixture, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return by what noise is measured: as the checkpoint has it, or measured by the first rank for all."""
    noisy = {name for name, config in recipe.modalities.items() if config.augment.gaussian_noise}

    def measured() -> dict[str, Any]:
        positions = dataset.positions(recipe.data.split, "train")
        scales = dict(known)
        for name in sorted(noisy - known.keys()):
            fields = standard_deviations(dataset, positions, name)
            scales[name] = {field: values.tolist() for field, values in fields.items()}
        return scales

    return on_first_rank(measured)


def identity(recipe: Recipe, dataset: Dataset | Mixture) -> dict[str, Any]:
    """Return what a step number means: a run that resumed with another of these would repeat or skip samples."""
    data = recipe.data
    return {
        "data_sha256": dataset.sha256,
        "split": data.split,
        "batch_size": data.batch_size,
        "budget": data.budget.model_dump() if data.budget else None,
        "order": data.training_order().model_dump(mode="json"),
        "mix": [[entry.name, entry.weight] for entry in data.mix],
        "seed": recipe.seed,
        "modalities": list(recipe.modalities),
    }


def refuse_another_run(known: Mapping[str, Any], now: Mapping[str, Any], *, where: Path) -> None:
    """Refuse to resume a run whose step numbers mean something else; see `identity`."""
    for name, value in now.items():
        if known.get(name) != value:
            raise CheckpointError(
                f"the checkpoint was made with another {name}",
                where=where,
                why=f"{known.get(name)}, now {value}",
                do="resume with the recipe and the data of the first start, or start anew with another --out",
            )


def resumed_from(checkpoints: Checkpoints, resume: bool | Literal["auto"]) -> Path | None:
    """Return the checkpoint that a run goes on from, the same on all ranks; None: it starts.

    ``auto`` starts where there has never been one; where all are damaged, it is an error like ``True``. A run that is
    to start is refused where there are some, which a later ``--resume`` would take for its own.
    """
    some = on_first_rank(lambda: bool(checkpoints.steps()))
    if some and not resume:
        raise CheckpointError(
            "the folder holds the checkpoints of an earlier run",
            where=checkpoints.folder,
            do="continue it with --resume, or name another --out",
        )
    return on_first_rank(checkpoints.newest) if some or resume is True else None
