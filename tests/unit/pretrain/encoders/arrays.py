"""Specs and rows of spectra, grids, images, tables, sequences, vectors and texts for tests of encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch

from pretrain.encoders.base import ENCODERS, Encoder
from shards.batch import collate_modality
from shards.features.image import ImageFeature
from shards.features.smiles import SmilesFeature
from shards.features.table import TableFeature
from shards.schema import FieldSpec, ModalitySpec, Value
from shards.sources.base import Record

SMILES, TABLE, IMAGE = (
    SmilesFeature(),
    TableFeature(
        columns=("voltage_kv", "flow_ml_h", "humidity"), categorical={"polymer": ("PVDF", "PAN"), "drum": ("on",)}
    ),
    ImageFeature(size=32),
)
SPECS = {
    "dos": ModalitySpec(
        name="dos", kind="spectrum", fields={"intensity": FieldSpec(dtype="float32", shape=(601,))},
        feature={"step": "dos", "start": -10.0, "stop": 10.0},
    ),
    "short": ModalitySpec(
        name="dos", kind="spectrum", fields={"intensity": FieldSpec(dtype="float32", shape=(121,))},
        feature={"step": "dos", "start": -10.0, "stop": 10.0},
    ),
    "grid": ModalitySpec(name="rho", kind="grid", fields={"density": FieldSpec(dtype="float16", shape=(16, 16, 16))}),
    "image": IMAGE.spec("sem"),
    "table": TABLE.spec("process"),
    "smiles": SMILES.spec("smiles"),
    "vector": ModalitySpec(name="magpie", kind="vector", fields={"vector": FieldSpec(dtype="float32", shape=(7,))}),
    "text": ModalitySpec(name="text", kind="text"),
}  # fmt: skip
CELLS = [
    {"voltage_kv": 18.0, "flow_ml_h": 0.2, "humidity": 40.0, "polymer": "PAN", "drum": "on"},
    {"voltage_kv": 22.0, "polymer": "PVDF"},
    {"flow_ml_h": 0.4, "polymer": "PEO", "drum": "on"},
    {"voltage_kv": 16.0, "flow_ml_h": 0.6, "humidity": 55.0},
    {"voltage_kv": 20.0, "humidity": 30.0, "polymer": "PAN"},
    {"voltage_kv": 14.0, "flow_ml_h": 0.3, "humidity": 45.0, "drum": "on"},
]
MOLECULES = ["CC(=O)O", "c1ccncc1", "C", "F/C=C/Cl.[Na+]", "CCO", "O=C=O"]
TEXTS = [
    "NaCl is cubic. All Na(1)-Cl(1) bond lengths are 2.82 Å.",
    "Al is Copper structured.",
    "SrTiO3 is cubic. Ti(1) is bonded to six O(1) atoms to form octahedra.",
    "Zn is hexagonal. All bond lengths are 2.70 Å.",
    "Si is diamond structured.",
    "GaN is Wurtzite structured and hexagonal.",
]


def rows(name: str, seed: int = 0) -> list[Value]:
    """Return six rows of a spec."""
    rng = np.random.default_rng(seed)
    if name == "text":
        return list(TEXTS)
    if name == "smiles":
        return [SMILES(Record(id="x", smiles=smiles)) for smiles in MOLECULES]
    if name == "table":
        return [TABLE(Record(id="x", columns=columns)) for columns in CELLS]
    if name == "image":
        return [{"pixels": rng.integers(0, 256, (n, 1, 32, 32), dtype=np.uint8)} for n in (2, 1, 3, 1, 2, 1)]
    field, spec = next(iter(SPECS[name].fields.items()))
    if SPECS[name].kind == "spectrum":
        axis = np.linspace(0, 1, int(spec.shape[0]))
        return [
            {field: np.exp(-(((axis[:, None] - rng.random(3)) / 0.05) ** 2)).sum(1).astype(spec.dtype)}
            for _ in range(6)
        ]  # fmt: skip
    return [{field: rng.gamma(2.0, 1.0, spec.shape).astype(spec.dtype)} for _ in range(6)]


def build(
    kind: str, name: str, *, values: Sequence[Value] | None = None, spec: ModalitySpec | None = None, **options: object
) -> Encoder:
    """Return an encoder, fitted and in evaluation mode."""
    config, plugin, spec = ENCODERS.options({"kind": kind, **options}), ENCODERS.get(kind), spec or SPECS[name]
    fitted = json.loads(json.dumps(plugin.fit(spec, config, iter(rows(name) if values is None else values))))
    torch.manual_seed(0)
    return plugin(spec, config, fitted).eval()


def inputs(name: str, values: Sequence[Value] | None = None):
    return collate_modality(SPECS[name], rows(name) if values is None else values)


def vectors(encoder: Encoder, name: str, values: Sequence[Value] | None = None) -> torch.Tensor:
    with torch.no_grad():
        return encoder(inputs(name, values)).vector
