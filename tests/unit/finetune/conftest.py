"""A tiny exported model over the synthetic data, with random weights: what it computes is the same for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.loading import Foundation, load_foundation
from pretrain.config import Recipe, parse_recipe
from shards.reader import Dataset
from tests.random_models import write_model


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store that all tests share: to create its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def mlflow_store(mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test logs and registers goes to that store."""
    monkeypatch.chdir(mlflow_folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_folder}/mlflow.db")


@pytest.fixture(scope="session")
def recipe(toy_folder: Path) -> Recipe:
    encoder = {"kind": "vector", "dim": 8}
    tables = {
        "name": "toy",
        "data": {"path": str(toy_folder), "batch_size": 16},
        "modalities": {name: {"encoder": encoder} for name in ("a", "b", "c")},
        "projection": {"dim": 8},
        "objective": {"kind": "anchored", "anchor": "a"},
    }
    return parse_recipe(tables, where="test")


@pytest.fixture(scope="session")
def export_folder(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path, recipe: Recipe) -> Path:
    dataset = Dataset(toy_folder, list(recipe.modalities))
    folder = tmp_path_factory.mktemp("export") / "model"
    return write_model(folder, recipe, dataset, data_name="toy", data_sha256="0" * 64, data_contents=dataset.contents)


@pytest.fixture
def foundation(export_folder: Path) -> Foundation:
    return load_foundation(str(export_folder))
