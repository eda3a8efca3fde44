"""Small models with fusions: two spectra with tokens, encoders of EQUAL size, and a vector; samples in two views."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shards.batch import Batch, collate
from shards.schema import FieldSpec, ModalitySpec, Sample

if TYPE_CHECKING:
    from pretrain.model import MultimodalModel

NAMES, POINTS = ("a", "b", "c"), 24
SMALL = {"dim": 8, "heads": 2, "dropout": 0.0}
SPECS = {
    name: ModalitySpec(name=name, kind="spectrum", fields={"intensity": FieldSpec(dtype="float32", shape=(POINTS,))})
    for name in "ab"
} | {"c": ModalitySpec(name="c", kind="vector", fields={"intensity": FieldSpec(dtype="float32", shape=(POINTS,))})}
FITTED = {"a": {"unit": 1.0}, "b": {"unit": 1.0}, "c": {"mean": [0.0] * POINTS, "std": [1.0] * POINTS}}
SPECTRUM = {
    "kind": "spectrum_transformer", "dim": 6, "depth": 1, "heads": 2, "head_dim": 3, "mlp_dim": 8, "patch": 8,
    "summary": False, "dropout": 0.0, "scale": "linear",
}  # fmt: skip
ENCODERS = {"a": SPECTRUM, "b": SPECTRUM, "c": {"kind": "vector", "hidden": 8, "dim": 6}}
KINDS: dict[str, dict[str, Any]] = {
    "concat": {"dim": 8},
    "gated": {"dim": 8, "form": "attention"},
    "low_rank_tensor": {"dim": 8},
    **dict.fromkeys(("cross_attention", "gmca", "attention_bottleneck", "token_transformer"), SMALL),
}
TREE = {
    "spectra": {"kind": "cross_attention", "inputs": ["a", "b"], **SMALL},
    "joint": {"kind": "gmca", "inputs": ["spectra", "b", "c"], **SMALL},
}


def fusions(kind: str) -> dict[str, Any]:
    """Tables of one fusion, or of the tree."""
    return TREE if kind == "tree" else {"joint": {"kind": kind, **KINDS[kind]}}


def recipe(objective: dict[str, Any], fused: dict[str, Any], names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return {
        "name": "fused",
        "data": {"path": "none", "batch_size": 12},
        "modalities": {name: {"encoder": ENCODERS[name]} for name in names},
        "fusions": fused,
        "projection": {"dim": 5},
        "objective": objective,
        "optim": {"lr": 1e-2, "epochs": 1, "warmup_epochs": 0, "precision": "fp32", "grad_clip": 0.0},
    }


def model(
    objective: dict[str, Any], fused: dict[str, Any], names: tuple[str, ...] = NAMES, **options: Any
) -> MultimodalModel:
    from pretrain.config import parse_recipe
    from pretrain.model import MultimodalModel

    torch.manual_seed(0)
    return MultimodalModel(parse_recipe(recipe(objective, fused, names), where="fused"), SPECS, FITTED, **options)


def samples(rows: int, seed: int = 0, share: float = 0.7) -> list[Sample]:
    """Samples of which each modality is there with probability ``share``."""
    rng = np.random.default_rng(seed)
    return [
        Sample(
            id=f"{seed}-{row}",
            arrays={name: {"intensity": noise(rng)} for name in NAMES if rng.random() < share},
        )
        for row in range(rows)
    ]


def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=POINTS).astype(np.float32)


def again(sample: Sample, share: float = 0.9) -> Sample:
    """The second view: noisier, and now and then without a modality."""
    rng = np.random.default_rng([int(part) for part in sample.id.split("-")])
    arrays = {
        name: {"intensity": value["intensity"] + 0.3 * noise(rng)}
        for name, value in sample.arrays.items()
        if rng.random() < share
    }
    return replace(sample, arrays=arrays)


def batch(parts: list[Sample], names: tuple[str, ...] = NAMES) -> Batch:
    specs = {name: SPECS[name] for name in names}
    return replace(collate(parts, specs), twin=collate([again(sample) for sample in parts], specs))
