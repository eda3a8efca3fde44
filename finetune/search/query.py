"""From whatever a user asks with to one unit vector of the latent space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from finetune.loading import Foundation, device_of
from finetune.materials import read_material, to_known_sample
from pretrain.data import as_evaluated
from shards.batch import collate
from shards.errors import ConfigError, DataError, suggest
from shards.schema import Sample


def embed_query(foundation: Foundation, material: Any, by: Sequence[str] = ()) -> np.ndarray:
    """Embed one material, by one modality or by several together.

    Several are joined by the model's own fusion, where its objective compares one that joins them all; else their unit
    vectors are averaged.

    Parameters
    ----------
    foundation : Foundation
        Embeds.
    material : object
        See `finetune.materials`: a file, a structure, a density of states, a `Sample`, a mapping of several of these.
    by : sequence of str
        Modalities. Default: of a mapping all that it gives, of anything else the first that the model reads.

    Returns
    -------
    ndarray
        (D,) float32 unit vector.
    """
    for name in by:
        if name not in foundation.model.specs:
            raise ConfigError(f"the model has no modality '{name}'", why=suggest(name, foundation.modalities))
    several = isinstance(material, Mapping)
    if several:
        # with all that the model reads in view: what is not asked for must not be taken for a row of a table
        material = read_material(material, foundation.model.specs)
    if len(by) == 1 or not (by or several):
        return foundation.embed(material, by[0] if by else None)
    specs = {name: spec for name, spec in foundation.model.specs.items() if not by or name in by}
    sample = to_known_sample(material, specs)
    names = [name for name in specs if name in sample.modalities]
    if missing := [name for name in by if name not in names] or (not names and foundation.modalities):
        raise DataError(f"the material has no modality '{missing[0]}'", where=sample.id)
    fusion = _fusion(foundation, names) if len(names) > 1 else None
    if fusion is not None:
        return _fused(foundation, sample, names, fusion)
    mean = np.mean([foundation.embed(sample, name) for name in names], axis=0)
    return _unit(mean)


def merged_sample(foundation: Foundation, materials: Sequence[Any]) -> Sample:
    """Return one sample with the modalities of several materials, each by the first that the model reads of it.

    A structure file and the density of states of the same material are one query.
    """
    whole = Sample(id="query")
    for material in materials:
        read = read_material(material, foundation.model.specs)
        specs = foundation.model.specs
        # what is given as the model reads it comes before what would be computed
        given = [] if isinstance(read, Sample) else [name for name in specs if name in read.values]
        for name in dict.fromkeys([*given, *specs]):
            part = to_known_sample(read, {name: specs[name]})
            if name in part.modalities:
                break
        else:
            raise DataError("the model reads nothing of this", where=material, why=f"it reads {foundation.modalities}")
        if name in whole.modalities:
            raise ConfigError(f"the modality '{name}' is given twice", where=material, do="ask with one at a time")
        held = {n: value for n, value in part.arrays.items() if n == name}
        whole.arrays.update(held)
        whole.text.update({n: value for n, value in part.text.items() if n == name})
    return whole


def _fusion(foundation: Foundation, names: Sequence[str]) -> str | None:
    """Return a fusion that the objective compares as a whole and that joins all of ``names``."""
    model = foundation.model
    compared = [name for name in model.names if name in model.fusions]
    return next((name for name in compared if set(names) <= set(model.joined[name])), None)


@torch.no_grad()
def _fused(foundation: Foundation, sample: Sample, names: Sequence[str], fusion: str) -> np.ndarray:
    model = foundation.model
    kept = Sample(
        id=sample.id,
        arrays={name: value for name, value in sample.arrays.items() if name in names},
        text={name: value for name, value in sample.text.items() if name in names},
    )
    seen = as_evaluated(foundation.export.recipe, model.specs)(kept)
    z, _ = model.eval().encode(collate([seen], model.specs).to(device_of(model)))
    return cast(np.ndarray, F.normalize(z[fusion].float(), dim=1)[0].cpu().numpy())


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if length < 1e-6:
        raise DataError("the modalities of the query point in opposite directions", do="ask with one of them")
    return (vector / length).astype(np.float32)
