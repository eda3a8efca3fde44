"""Every pretraining recipe that is shipped trains two steps on two ranks, and every part of it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import spawn

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
EMBEDDED = sorted(
    path
    for path in RECIPES.rglob("*.toml")
    if 'path = "embedded:' in path.read_text() and "[objective]" in path.read_text()
)
BATCH = 8
# what would take minutes on two cores is made small, and stays the same kind of thing
SMALLER = {
    "multimat": [
        "modalities.dos.encoder.depth=1",
        "modalities.charge_density.encoder.depth=14",
        "modalities.charge_density.encoder.width=8",
        "modalities.charge_density.encoder.cardinality=2",
    ],
}


def train(paths: list[str], folder: str) -> dict[str, Any]:
    """Two steps of each recipe on this rank; losses, and the names of the parameters that learn and did not move."""
    import torch

    from pretrain.build import build
    from pretrain.config import load_recipe
    from pretrain.engine import start_process_group
    from pretrain.export import write_export
    from pretrain.fitting import fit
    from pretrain.setup import noise_scales, open_on_all_ranks

    rank, _, device = start_process_group()
    results: dict[str, Any] = {}
    exported = Path(folder) / "exported"
    for path in map(Path, paths):
        small = [f"data.batch_size={BATCH}", "optim.warmup_epochs=0", *SMALLER.get(path.stem, [])]
        recipe = load_recipe(path, small)
        weights = {name: config.weights for name, config in recipe.modalities.items() if config.weights}
        recipe = load_recipe(path, [*small, *(f"modalities.{name}.weights={exported}" for name in weights)])
        dataset = open_on_all_ranks(recipe)
        fitted = fit(recipe, dataset)
        parts = build(
            recipe, dataset, fitted, noise_scales(recipe, dataset, {}), settings={}, resumed=False, device=device,
            report=lambda line: None,
        )  # fmt: skip
        before = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
        losses, batches = [], parts.training.epoch(0)
        for step in range(2):
            losses.append(parts.engine.compute(next(batches), step)["loss"])
            parts.engine.apply()
        still = [
            name
            for name, p in parts.model.named_parameters()
            # what stands for an absent input learns where one is absent
            if p.requires_grad and ".absent_" not in name and torch.equal(before[name], p.detach())
        ]
        results[path.stem] = {"losses": losses, "still": still}
        if path.stem == "demo" and rank == 0:
            # the anchor of the recipe that starts from a trained one
            data = {"data_name": "d", "data_sha256": "0", "data_contents": []}
            write_export(exported, parts.model, recipe, fitted, step=2, validation=[], **data)
    return results


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    paths = sorted(EMBEDDED, key=lambda path: path.stem != "demo")
    return spawn(train, 2, [str(path) for path in paths], str(tmp_path_factory.mktemp("recipes")))[0]


@pytest.mark.parametrize("name", [path.stem for path in EMBEDDED])
def test_a_recipe_trains_on_two_ranks(trained: dict[str, Any], name: str) -> None:
    result = trained[name]
    assert len(result["losses"]) == 2
    assert all(math.isfinite(loss) for loss in result["losses"])
    assert result["losses"][0] != result["losses"][1]
    assert result["still"] == []


def test_the_recipes_are_all_there() -> None:
    assert {"demo", "multimat", "multimat-fast", "comm", "matmcl", "imagebind", "gram", "symile", "calmrl"} <= {
        path.stem for path in EMBEDDED
    }
