"""The recipe that predicts a density of states: it goes with the data set, and a tiny version of it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.compare import Comparison
from finetune.config import load_finetune_recipe
from finetune.evaluations.discovery import weights_of
from finetune.heads.base import HEADS
from finetune.metrics.spectra import integral_scores
from pretrain.config import parse_recipe
from shards.reader import Dataset
from tests.random_models import write_model

pytestmark = pytest.mark.usefixtures("mlflow_store")
RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "dft-dos-finetune.toml"


@pytest.fixture(scope="module")
def crystal_model(dft_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of crystals with random weights."""
    tables = {
        "name": "crystals",
        "data": {"path": str(dft_shards), "batch_size": 8},
        "modalities": {
            "crystal": {"encoder": {"kind": "cgcnn", "dim": 8, "layers": 1}},
            "xrd": {"encoder": {"kind": "xrd", "depth": 0}},
        },
        "projection": {"dim": 8},
        "objective": {"kind": "anchored", "anchor": "crystal"},
    }
    recipe, dataset = parse_recipe(tables, where="test"), Dataset(dft_shards, ["crystal", "xrd"])
    some = [dataset[i] for i in range(20)]
    folder = tmp_path_factory.mktemp("crystals") / "model"
    return write_model(folder, recipe, dataset, samples=some, data_contents=dataset.contents)


def settings(model: Path, data: Path) -> list[str]:
    rows = '[{strategy="mean",modalities=[]},{strategy={kind="knn",neighbours=[5]}},{strategy="frozen"}]'
    return [f"model={model}", f"data={data}", f"rows={rows}", "seeds=[0]", "optim.frozen_epochs=3", "head.rank=8"]


def test_a_tiny_version_runs_and_says_what_its_baselines_are_worth(
    crystal_model: Path, dft_shards: Path, tmp_path: Path
) -> None:
    recipe = load_finetune_recipe(RECIPE, settings(crystal_model, dft_shards))
    comparison = Comparison(recipe, tmp_path, report=lambda line: None)
    results = comparison.run()
    assert len(comparison.data.names) == 601
    table = json.loads((tmp_path / "report" / "table.json").read_text())["rows"]
    assert table[0]["strategy"] == "mean" and len(table) == 3
    dataset = Dataset(dft_shards)
    weights = weights_of(dataset.modalities["dos"], (-5.0, 5.0))
    for row, result in zip(table, results, strict=True):
        there = result.targets @ weights > 0
        wanted, found = (values[there].astype(np.float64) for values in (result.targets, result.predictions))
        each = np.diag(integral_scores(wanted, found, weights))
        assert row["test_integral_score"] == pytest.approx(each.mean(), rel=1e-3), "as MultiMat's discovery has it"
    # neighbours in no trained space know more than the mean
    assert table[1]["test_integral_score"] < table[0]["test_integral_score"]


def test_the_recipe_goes_with_the_data_set_that_it_names(dft_shards: Path) -> None:
    recipe: Any = load_finetune_recipe(RECIPE)
    head = HEADS.options(recipe.head)
    dos = Dataset(dft_shards).modalities["dos"]
    (field,) = dos.fields.values()
    assert head.start == dos.feature["start"]
    assert head.start + head.spacing * (int(field.shape[0]) - 1) == pytest.approx(dos.feature["stop"])
    kinds = {row.table["kind"] for row in recipe.rows}
    assert recipe.model == "models:/demo@champion" and {"mean", "knn", "scratch", "frozen", "full"} <= kinds
    assert not any("dos" in row.modalities for row in recipe.rows)
