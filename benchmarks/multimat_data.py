"""What both sides of the MultiMat benchmark read: example materials, crystal graphs in place of theirs, batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pretrain.encoders.grid import GridEncoder
from pretrain.encoders.spectrum import SpectrumTransformer, rescale
from pretrain.model import MultimodalModel
from shards.batch import Batch, collate
from shards.errors import DataError
from shards.features.charge_density import ChargeDensityFeature
from shards.features.dos import DosFeature
from shards.features.vector import VectorFeature
from shards.recipes import read_tables
from shards.schema import FieldSpec, ModalitySpec, Sample
from shards.sources.multimat import TEXT_VECTOR, MultimatSource

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
MATERIALS = DATA / "multimat_mp408" / "multimat_mp408.npz"
GRAPHS = DATA / "snumat100" / "graphs.npz"
# the paper's axis is each material's own; on one axis both sides see the same numbers
STEPS = {
    "dos": DosFeature(scale="area"),
    "charge_density": ChargeDensityFeature(scale="mean"),
    "text": VectorFeature(array=TEXT_VECTOR, length=768),
}
VOLUME_A3 = 15.0  # of an atom
CRYSTAL = ModalitySpec(
    name="crystal",
    kind="graph",
    fields={
        "atomic_numbers": FieldSpec(dtype="uint8", shape=("atoms",)),
        "lattice": FieldSpec(dtype="float32", shape=(3, 3), unit="A"),
        "edge_index": FieldSpec(dtype="int32", shape=(2, "edges"), index_of="atoms"),
        "edge_vector": FieldSpec(dtype="float32", shape=("edges", 3), unit="A"),
    },
)
MODALITIES = ("crystal", *STEPS)
# the example has vectors of a frozen MatBERT in place of the texts that the recipes read
TEXTS = {
    "multimat": {"kind": "vector", "layers": 2, "hidden": 512, "activation": "relu", "standardise": False},
    "multimat-fast": {"kind": "vector", "dropout": 0.3},
}
SPECS = {"crystal": CRYSTAL, **{name: step.spec(name) for name, step in STEPS.items()}}


def tables(name: str) -> dict[str, Any]:
    """Return the tables of one of the project's recipes, with an encoder for the example's texts."""
    found = read_tables(ROOT / "recipes" / f"{name}.toml")
    found["modalities"]["text"] = {"encoder": TEXTS[name]}
    return found


@cache
def graphs() -> list[dict[str, np.ndarray]]:
    """Return SNUMAT's distance graphs; edges of which the length alone is known lie along an axis of a cubic cell."""
    found = np.load(GRAPHS)
    names = sorted({key.split("|")[0] for key in found.files})
    result = []
    for name in names:
        length, numbers = found[f"{name}|edge_attr"].ravel(), found[f"{name}|atom_numbers"].ravel()
        result.append(
            {
                "atomic_numbers": numbers.astype(np.uint8),
                "lattice": np.eye(3, dtype=np.float32) * (VOLUME_A3 * len(numbers)) ** (1 / 3),
                "edge_index": found[f"{name}|edge_index"].astype(np.int32),
                "edge_vector": np.stack([length, 0 * length, 0 * length], axis=1).astype(np.float32),
            }
        )
    return result


@cache
def samples() -> list[Sample]:
    """Return the example materials; material i has graph i modulo 100. What a build would quarantine is left out."""
    source = MultimatSource(path=MATERIALS)
    result = []
    for place, item in enumerate(source.items()):
        record = source.read(item)
        try:
            values = {name: step(record) for name, step in STEPS.items()}
        except DataError:
            continue
        there = {name: cast(dict, value) for name, value in values.items() if value is not None}
        arrays = {"crystal": graphs()[place % len(graphs())], **there}
        result.append(Sample(id=record.id, arrays=arrays, group=record.group))
    return result


def complete(given: Sequence[Sample]) -> list[Sample]:
    """Return the samples that have all modalities."""
    return [sample for sample in given if sample.modalities == set(MODALITIES)]


def batches(given: Sequence[Sample], rows: int, count: int, seed: int = 0) -> list[Batch]:
    """Return ``count`` batches of ``rows`` samples, drawn in a random order, again and again where they run out."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(given)) for _ in range(1 + rows * count // len(given))])
    return [collate([given[i] for i in order[n * rows : (n + 1) * rows]], SPECS) for n in range(count)]


def without(given: Sequence[Sample], name: str) -> list[Sample]:
    """Return the samples without one of their modalities."""
    return [replace(s, arrays={key: value for key, value in s.arrays.items() if key != name}) for s in given]


def as_published(batch: Batch, model: MultimodalModel) -> dict[str, Tensor | dict[str, Tensor]]:
    """Return a batch as the original takes it: every modality has all rows, those that are missing are zeros.

    Scaled as the encoders of ``model`` scale them, so that both sides see the same numbers.
    """
    rows = len(batch.ids)

    def placed(name: str, values: Tensor) -> Tensor:
        return values.new_zeros(rows, *values.shape[1:]).index_copy(0, batch.present[name].nonzero()[:, 0], values)

    spectrum = cast(SpectrumTransformer, model.encoders["dos"])
    intensity = rescale(cast(Tensor, batch.inputs["dos"]["intensity"]), spectrum.unit, "linear")
    axis = spectrum.axis[: intensity.shape[1]].expand(len(intensity), -1)
    density = (
        cast(Tensor, batch.inputs["charge_density"]["density"]).float()
        / cast(GridEncoder, model.encoders["charge_density"]).unit
    )
    return {
        "crystal": cast(dict[str, Tensor], batch.inputs["crystal"]),
        "dos": placed("dos", torch.stack([axis, intensity], dim=1)),
        "charge_density": placed("charge_density", density[:, None]),
        "text": placed("text", cast(Tensor, batch.inputs["text"]["values"])),
    }
