"""Heads that keep training rows, as rows of a recipe: from the recipe to what the registered predictor says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.adapt.frozen import Frozen, OnFrozen
from finetune.compare import Comparison
from finetune.config import FinetuneRecipe, RowConfig
from finetune.loading import PropertyModel, load
from shards.errors import ConfigError

pytestmark = pytest.mark.usefixtures("mlflow_store")
HEADS = ["bilinear_transduction", "retrieval_augmented"]


def recipe(export_folder: Path, data: Path, head: str, rows: list[RowConfig], **changes: Any) -> FinetuneRecipe:
    tables = {
        "name": f"memory-{head}",
        "model": str(export_folder),
        "data": str(data),
        "target": "gap_ev",
        "seeds": (0,),
        "rows": rows,
        "head": {"kind": head, "hidden": 16},
        "optim": {"frozen_epochs": 5, "lr": 1e-2},
    }
    return FinetuneRecipe.model_validate({**tables, **changes})


def run(made: FinetuneRecipe, out: Path) -> tuple[Comparison, list[Any]]:
    comparison = Comparison(made, out, report=lambda line: None)
    return comparison, comparison.run()


FROZEN = RowConfig(strategy="frozen", modalities=("a", "b"))


@pytest.mark.parametrize("head", HEADS)
def test_what_is_registered_predicts_what_the_table_says(
    head: str, export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    rows = [RowConfig(strategy="mean", modalities=()), FROZEN, RowConfig(**{**dict(FROZEN), "label_fraction": 0.5})]
    comparison, results = run(recipe(export_folder, toy_folder, head, rows), tmp_path)
    model = load(f"models:/memory-{head}@champion")
    assert isinstance(model, PropertyModel) and model.info.head["kind"] == head
    samples = [comparison.dataset[int(i)] for i in comparison.data.parts["test"].positions]
    best = next(result for result in results if result.row == comparison.best_row)
    found = model.predict(samples)
    np.testing.assert_allclose(np.asarray(found), best.predictions[:, 0], atol=1e-4)
    assert np.ptp(np.asarray(found)) > 0 and found[0].lower < float(found[0]) < found[0].upper  # type: ignore[index]
    name = "anchors" if head == "bilinear_transduction" else "memory"
    chosen = comparison.data.training(best.row.label_fraction, 0)
    assert len(getattr(model.predictor.head, name)) == len(chosen), "training rows with a label, no others"


@pytest.mark.parametrize("frozen", [True, False], ids=["right", "the join is trained"])
def test_the_rows_that_are_kept_are_those_that_the_predictor_makes(
    frozen: bool, export_folder: Path, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that lack ``b`` hold a vector in its place: if that is learned, what was kept of them is no longer true."""
    if not frozen:
        monkeypatch.setattr(Frozen, "prepare", OnFrozen.prepare)
    comparison, _ = run(recipe(export_folder, toy_folder, "retrieval_augmented", [FROZEN]), tmp_path)
    model = load(str(tmp_path / "predictor"))
    assert isinstance(model, PropertyModel)
    predictor, data = model.predictor, comparison.data
    with torch.no_grad():
        made = torch.cat([predictor.featurizer(batch) for batch in data.batches(("a", "b"), "train")])
        kept = predictor.head.memory * predictor.head.stretch + predictor.head.shift
    assert torch.allclose(made, kept, atol=1e-5) == frozen


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "row",
    [
        {"strategy": "full"},
        {"strategy": "scratch"},
        {"strategy": {"kind": "lora", "rank": 2}},
        {"strategy": "attentive"},
        {"strategy": "scale_shift"},
        {"strategy": "frozen", "fusion": {"kind": "gated", "dim": 8}},
    ],
    ids=str,
)
def test_rows_whose_features_change_are_refused_before_training(
    head: str, row: dict[str, Any], export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    made = recipe(export_folder, toy_folder, head, [FROZEN, RowConfig(**row, modalities=("a", "b"))])
    with pytest.raises(ConfigError, match=rf"'{head}' does not go with the row(.|\n)*'frozen' without a fusion"):
        Comparison(made, tmp_path)
