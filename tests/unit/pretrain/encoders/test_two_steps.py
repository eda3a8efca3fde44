"""Each encoder of graphs, compositions and fingerprints trains two steps in a whole model, beside a plain vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from pretrain.config import parse_recipe
from pretrain.gather import gather_batch
from pretrain.model import MultimodalModel
from pretrain.parts import check_modalities, fit_encoders
from shards.build import SplitPlan, build
from shards.features.crystal import CrystalFeature
from shards.features.fingerprint import FingerprintFeature
from shards.features.molecule import MoleculeFeature
from shards.reader import Dataset
from shards.sources.base import Record
from shards.stream import BatchStream
from tests.synthetic import ToyVector
from tests.unit.pretrain.encoders import crystals

SMILES = ["CCO", "c1ccccc1", "CC(=O)O", "C", "CCN", "OCC(O)CO", "C#N", "[Na+].[Cl-]"]
FEATURES = {
    "crystal": CrystalFeature(cutoff_a=4.0, potentials=False),
    "molecule": MoleculeFeature(),
    "ecfp": FingerprintFeature(bits=128),
    "a": ToyVector(step="a"),
}
ENCODERS = {
    "comformer": "crystal",
    "schnet": "crystal",
    "visnet": "crystal",
    "composition": "crystal",
    "gin": "molecule",
    "dmpnn": "molecule",
    "fingerprint": "ecfp",
}


def records():
    """Every fourth record lacks its crystal, every fifth its molecule."""
    for i in range(16):
        fcc = Lattice((3.5 + 0.1 * i) / 2 * (np.ones((3, 3)) - np.eye(3)))
        yield Record(
            id=str(i),
            structure=Structure(fcc, ["Cu" if i % 2 else "Al"], [[0, 0, 0]]) if i % 4 else None,
            smiles=SMILES[i % len(SMILES)] if i % 5 else None,
            tags={"chemical_system": str(i)},
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs") / "data"
    splits = {"chemical_system": SplitPlan(by="chemical_system", fractions={"train": 0.8, "val": 0.1, "test": 0.1})}
    build(records(), FEATURES, folder, name="graphs", splits=splits, workers=1, shard_samples=8)
    return Dataset(folder)


def model_with(kind, data, autocast=None, **more):
    tables = {
        "name": "t",
        "data": {"path": "x"},
        "modalities": {ENCODERS[kind]: {"encoder": {"kind": kind}}, "a": {"encoder": {"kind": "vector"}}},
        "projection": {"dim": 8},
        "objective": {"kind": "all_pairs"},
        **more,
    }
    recipe = parse_recipe(tables, where="here")
    check_modalities(recipe, data.modalities)
    fitted = fit_encoders(recipe, data.modalities, lambda name: [s.arrays[name] for s in data if name in s.arrays])
    torch.manual_seed(0)
    return MultimodalModel(recipe, data.modalities, fitted, autocast)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_two_steps(kind, autocast, data):
    model = model_with(kind, data, autocast)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    stream = BatchStream(data, data.positions("chemical_system", "train"), batch_size=6)
    batches = list(stream.epoch(0))[:2]
    assert len(batches) == 2
    for batch in batches:
        loss, _ = model.objective(gather_batch(*model(batch)))
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert loss > 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    encoder = [key for key in before if key.startswith("encoders")]
    assert not [key for key in encoder if torch.equal(model.get_parameter(key), before[key])]


@pytest.mark.parametrize("kind", ["comformer", "gin"])
def test_atoms_are_spread_over_tokens_where_a_fusion_reads_them(kind, data):
    name = ENCODERS[kind]
    joint = {"kind": "cross_attention", "inputs": [name, "a"], "dim": 8, "heads": 2}
    batch = next(BatchStream(data, data.positions("chemical_system", "train"), batch_size=6).epoch(0))
    for more, read in (
        ({}, False),
        ({"fusions": {"joint": joint}, "objective": {"kind": "anchored", "anchor": "joint"}}, True),
    ):
        encoder = model_with(kind, data, **more).encoders[name]
        assert (encoder(batch.inputs[name]).tokens is not None) == read


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_batch_without_the_modality_touches_every_weight(kind, data):
    name, model = ENCODERS[kind], model_with(kind, data)
    lacking = [i for i, sample in enumerate(data) if name not in sample.arrays]
    assert lacking
    batch = next(BatchStream(data, np.array(lacking), batch_size=len(lacking)).epoch(0))
    loss, _ = model.objective(gather_batch(*model(batch)))
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.encoders[name].parameters())


@pytest.mark.parametrize(
    ("kind", "stages"),
    [
        ("comformer", [{"elements", "edge.0"}, {"layers.0"}, {"layers.1"}, {"layers.2"}, {"norm", "out", "summary"}]),
        ("schnet", [{"elements"}, {"blocks.0"}, {"blocks.1"}, {"norm", "out", "summary"}]),
        ("composition", [{"elements", "amount"}, *({f"blocks.{i}"} for i in range(3)), {"norm", "score", "out"}]),
        ("gin", [{"features"}, *({f"layers.{i}"} for i in range(3))]),
        ("dmpnn", [{"start", "bonds"}, {"message"}, {"end", "gathered"}]),
        ("fingerprint", [{"mlp.0", "mlp.1"}, {"mlp.4"}]),
        ("cgcnn", [{"elements"}, *({f"layers.{i}"} for i in range(3)), {"out.1"}, {"out.4"}, {"summary"}]),
        ("potnet", [{"elements", "local.0"}, {"layers.0"}, {"norm", "out", "summary"}]),
    ],
)
def test_depth_for_layer_decay(kind, stages):
    """A convolution and its norm are equally deep, and every encoder has more than one depth."""
    encoder = crystals.build(kind, spec=FEATURES[ENCODERS.get(kind, "crystal")].spec("x"))
    known = {parameter: name.split(".") for name, parameter in encoder.named_parameters()}
    found = [{".".join(known[p][: 2 if known[p][1].isdigit() else 1]) for p in stage} for stage in encoder.stages()]
    assert found == stages
    assert sum(map(len, encoder.stages())) == len(known)
