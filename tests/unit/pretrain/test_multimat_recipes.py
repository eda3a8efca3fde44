"""MultiMat's two recipes: what the published one says, and that both train on the embedded crystals."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from pretrain.config import Recipe, load_recipe
from pretrain.gather import gather_batch
from pretrain.model import MultimodalModel
from pretrain.optimizer import learning_rate, parameter_groups
from pretrain.parts import check_modalities, fit_encoders
from shards.augment import Augmenter
from shards.reader import Dataset
from shards.stream import BatchStream

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
# the published sizes take half a second a material and step on one core; widths and shapes stay as they are
SHORT = ["modalities.dos.encoder.depth=1", "modalities.charge_density.encoder.depth=14",
         "modalities.charge_density.encoder.coarsen=2"]  # fmt: skip


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.toml", overrides)


def test_the_published_run() -> None:
    chosen = recipe("multimat")
    optim, objective = chosen.optim, chosen.objective_options()
    assert (optim.betas, optim.weight_decay, optim.grad_clip) == ((0.9, 0.95), 0.05, 0)
    assert (optim.epochs, optim.warmup_epochs, chosen.data.batch_size) == (500, 10, 128)
    peak = max(learning_rate(optim, step, warmup=10, total=500) for step in range(500))
    assert peak == pytest.approx(1e-4 * chosen.data.batch_size / 256)
    assert learning_rate(optim, 500, warmup=10, total=500) == pytest.approx(1e-3 * peak)
    assert objective.kind == "all_pairs"
    assert (objective.temperature.learn, objective.temperature.init) == (False, 0.2)
    assert chosen.projection.kind == "none"
    assert not any(config.augment.varies for config in chosen.modalities.values())


def build(chosen: Recipe, data: Dataset) -> MultimodalModel:
    """The model of a recipe, fitted to some materials that have all modalities."""
    samples = (data[i] for i in range(len(data)))
    complete = list(islice((s for s in samples if s.modalities >= set(chosen.modalities)), 12))
    check_modalities(chosen, data.modalities)
    fitted = fit_encoders(chosen, data.modalities, lambda name: [s.value(name) for s in complete])
    torch.manual_seed(0)
    return MultimodalModel(chosen, data.modalities, fitted)


def test_the_published_sizes(dft_shards: Path) -> None:
    model = build(recipe("multimat"), Dataset(dft_shards))
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.encoders.items()}
    assert millions["crystal"] == pytest.approx(1.7, rel=0.1)
    assert millions["dos"] == pytest.approx(1.6, rel=0.02)
    assert millions["charge_density"] == pytest.approx(26, rel=0.02)
    assert {encoder.dim for encoder in model.encoders.values()} == {128}
    assert not list(model.projections.parameters()) and not list(model.objective.parameters())


@pytest.mark.parametrize(("name", "overrides"), [("multimat", SHORT), ("multimat-fast", [])])
def test_two_steps(name: str, overrides: list[str], dft_shards: Path) -> None:
    chosen = recipe(name, *overrides)
    data = Dataset(dft_shards).select(list(chosen.modalities))
    model = build(chosen, data)
    optimizer = torch.optim.AdamW(parameter_groups(model, chosen.optim.weight_decay), lr=chosen.optim.lr)
    augments = {key: config.augment for key, config in chosen.modalities.items()}
    stream = BatchStream(
        data, data.positions(chosen.data.split, "train"), batch_size=10,
        augmenter=Augmenter(data.modalities, augments, seed=0),
    )  # fmt: skip
    batches = stream.epoch(0)
    for _ in range(2):
        loss, logs = model.objective(gather_batch(*model(next(batches))))
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite() and loss > 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert len(logs) == 6 + 1  # every pair of four modalities, and the temperature
