"""Encoders of arrays and texts train two steps in a whole model, beside a plain vector; and they learn a handful."""

from __future__ import annotations

import pytest
import torch

from pretrain.config import parse_recipe
from pretrain.gather import gather_batch
from pretrain.model import MultimodalModel
from pretrain.parts import check_modalities, fit_encoders
from shards.batch import collate
from shards.schema import Sample
from tests.unit.pretrain.encoders.arrays import SPECS, build, inputs, rows
from tests.unit.pretrain.encoders.crystals import overfit

CASES = {
    "spectrum_transformer": ("short", {}),
    "spectrum_transformer-points": ("short", {"patch": 1, "depth": 1}),
    "spectrum_cnn": ("short", {}),
    "spectrum_cnn-flatten": ("short", {"pool": "flatten", "channels": [8, 8]}),
    "resnext3d": ("grid", {}),
    "resnext3d-zeros": ("grid", {"padding": "zeros", "coarsen": 2, "scale": "linear"}),
    "vit3d": ("grid", {}),
    "vit3d-learned": ("grid", {"position": "learned", "patch": 4}),
    "image": ("image", {"model": "test_convnext"}),
    "image-patches": ("image", {"model": "test_vit", "tokens": "patches"}),
    "ft_transformer": ("table", {}),
    "table_mlp": ("table", {}),
    "smiles_transformer": ("smiles", {}),
    "text": ("text", {}),
}
each_kind = pytest.mark.parametrize("case", CASES)


def batches(name, wanted="both"):
    """The same six samples in two orders; one lacks the modality, and one the vector."""
    values, partner = rows(name), rows("vector")
    samples = []
    for i, value in enumerate(values):
        key, arrays = SPECS[name].name, {} if i == 1 else {"magpie": partner[i]}
        there = i != 4 and wanted == "both"
        text = {key: value} if there and name == "text" else {}
        samples.append(Sample(id=str(i), arrays=arrays | ({key: value} if there and not text else {}), text=text))
    specs = {SPECS[key].name: SPECS[key] for key in (name, "vector")}
    return [collate(samples, specs), collate(samples[::-1], specs)]


def model_with(case, autocast=None):
    name, options = CASES[case]
    specs = {SPECS[key].name: SPECS[key] for key in (name, "vector")}
    encoder = {"kind": case.split("-")[0], **options}
    tables = {
        "name": "t",
        "data": {"path": "x"},
        "modalities": {SPECS[name].name: {"encoder": encoder}, "magpie": {"encoder": {"kind": "vector"}}},
        "projection": {"dim": 8},
        "objective": {"kind": "all_pairs"},
    }
    recipe = parse_recipe(tables, where="here")
    check_modalities(recipe, specs)
    fitted = fit_encoders(recipe, specs, lambda key: rows("vector" if key == "magpie" else name))
    torch.manual_seed(0)
    return MultimodalModel(recipe, specs, fitted, autocast)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@each_kind
def test_two_steps(case, autocast):
    model = model_with(case, autocast)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    for batch in batches(CASES[case][0]):
        loss, _ = model.objective(gather_batch(*model(batch)))
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert not [key for key in before if torch.equal(model.get_parameter(key), before[key]) and "log_scale" not in key]


@each_kind
def test_a_batch_without_the_modality_touches_every_weight(case):
    name, model = CASES[case][0], model_with(case)
    batch = batches(name, wanted="vector")[0]
    assert SPECS[name].name not in batch.inputs
    loss, _ = model.objective(gather_batch(*model(batch)))
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.encoders[SPECS[name].name].parameters())


@each_kind
def test_it_learns_a_handful(case):
    name, options = CASES[case]
    quiet = {} if case.startswith("image") else {"dropout": 0.0}
    encoder = build(case.split("-")[0], name, **{**options, **quiet})
    assert overfit(encoder, inputs(name), [0.3, -1.0, 2.0, 0.1, 1.2, -0.4], steps=80) < 0.05
