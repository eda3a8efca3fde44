"""The table's machinery on the synthetic data, where the label is a known function of the sample."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finetune.compare import Comparison
from finetune.config import FinetuneRecipe, RowConfig
from shards.errors import ConfigError, DataError
from shards.resplit import add_split
from shards.splits import SplitPlan

pytestmark = pytest.mark.usefixtures("mlflow_store")


def recipe(export_folder: Path, toy_folder: Path, **changes: object) -> FinetuneRecipe:
    strategies = ("mean", "probe", "frozen", "full", "scratch")
    tables = {
        "name": "toy-gap",
        "model": str(export_folder),
        "data": str(toy_folder),
        "target": "gap_ev",
        "seeds": (0, 1),
        "rows": [RowConfig(strategy=s, modalities=("a", "b")) for s in strategies],
        "optim": {"epochs": 3, "frozen_epochs": 5},
    }
    return FinetuneRecipe.model_validate({**tables, **changes})


def test_every_row_is_fitted_and_the_best_by_validation_is_registered(
    export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    comparison = Comparison(recipe(export_folder, toy_folder), tmp_path / "out", report=lambda line: None)
    results = comparison.run()
    table = {result.row.strategy: result.summary() for result in results}
    assert {row["seeds"] for s, row in table.items() if s in ("frozen", "full", "scratch")} == {2}
    assert table["frozen"]["test_mae_std"] > 0
    assert all(row["modalities"] == ["a", "b"] for row in table.values())
    candidates = {s: table[s]["val_mae"] - table[s]["val_mae_std"] for s in ("frozen", "full")}
    assert comparison.best_row is not None and comparison.best_row.strategy in candidates
    from finetune.loading import PropertyModel, load

    model = load("models:/toy-gap@champion")
    assert isinstance(model, PropertyModel) and model.info.targets == ("gap_ev",)
    assert len(model.info.foundation_seal) == 64


def test_the_mean_row_knows_the_training_part_only(export_folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    comparison = Comparison(
        recipe(export_folder, toy_folder, rows=[RowConfig(strategy="mean", modalities=())]), tmp_path, report=print
    )
    (result,) = comparison.run()
    assert result.predictions[:, 0] == pytest.approx(comparison.data.targets["train"].mean().item())
    used = {part: set(positions.tolist()) for part, positions in comparison.data.positions.items()}
    assert not used["train"] & used["test"] and not used["train"] & used["val"] and not used["val"] & used["test"]


def test_an_unknown_target_is_refused_with_a_suggestion(export_folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'gap_ev'"):
        Comparison(recipe(export_folder, toy_folder, target="gap_eV"), tmp_path)


def test_another_schema_is_refused_naming_the_difference(
    export_folder: Path, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import synthetic

    monkeypatch.setitem(synthetic.FEATURES, "b", synthetic.ToyVector(step="b", missing=0.1))
    synthetic.build_toy(tmp_path / "other")
    with pytest.raises(DataError, match=r"'b\.feature' is .*0\.1.*expected .*0\.3"):
        Comparison(recipe(export_folder, tmp_path / "other"), tmp_path)


def test_a_split_that_was_added_after_pretraining_is_not_tested_on(
    export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(toy_folder, tmp_path / "toy"))
    add_split(data, "later", SplitPlan(by="id"))
    Comparison(recipe(export_folder, data), tmp_path / "out")
    with pytest.raises(ConfigError, match="pretrained on split 'chemical_system'"):
        Comparison(recipe(export_folder, data, split="later"), tmp_path / "out")
