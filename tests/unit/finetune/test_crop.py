"""A crop that training draws at random is cut from the centre wherever the model is used, always to one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from finetune.compare import Comparison
from finetune.config import FinetuneRecipe
from finetune.evaluations.retrieval import retrieval_table
from finetune.loading import Foundation, PropertyModel, load, load_foundation
from finetune.search import Index
from pretrain.config import parse_recipe
from pretrain.export import read_export
from shards.batch import collate
from shards.reader import Dataset
from shards.schema import Sample
from tests.pictures import CROP, SIZE, build_pictures
from tests.random_models import write_model

EDGE = (SIZE - CROP) // 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("pictures") / "set"
    build_pictures(folder)
    return Dataset(folder)


@pytest.fixture(scope="module")
def exported(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tables = {
        "name": "pictures",
        "data": {"path": str(dataset.folder)},
        "modalities": {
            "a": {"encoder": {"kind": "vector", "dim": 8}},
            "sem": {"encoder": {"kind": "flat_image"}, "augment": {"crop": CROP, "flip": 0.5}},
        },
        "projection": {"dim": 8},
        "objective": {"kind": "anchored", "anchor": "a"},
    }
    recipe = parse_recipe(tables, where="test")
    folder = write_model(tmp_path_factory.mktemp("export") / "model", recipe, dataset)
    assert len(read_export(folder).fitted["sem"]["mean"]) == CROP**2
    return folder


@pytest.fixture
def foundation(exported: Path) -> Foundation:
    return load_foundation(str(exported))


def central(sample: Sample) -> Sample:
    """The sample as the encoder is to see it, cut here by hand."""
    pixels = sample.arrays["sem"]["pixels"][..., EDGE : EDGE + CROP, EDGE : EDGE + CROP]
    return Sample(id=sample.id, arrays={**sample.arrays, "sem": {"pixels": np.ascontiguousarray(pixels)}})


def pictured(dataset: Dataset) -> list[Sample]:
    return [sample for sample in dataset if "sem" in sample.modalities]


def test_the_schema_is_that_of_the_data_and_a_batch_without_pictures_is_encoded(
    foundation: Foundation, dataset: Dataset
) -> None:
    assert foundation.model.specs["sem"].difference(dataset.modalities["sem"]) is None
    lacking = [sample for sample in dataset if "sem" not in sample.modalities]
    z, _ = foundation.model.encode(collate(lacking, dataset.modalities))
    assert not z["sem"].any() and z["a"].any()


def test_embeddings_and_retrieval_are_those_of_the_centre(foundation: Foundation, dataset: Dataset) -> None:
    samples = pictured(dataset)
    with torch.no_grad():
        z, _ = foundation.model.encode(collate([central(sample) for sample in samples], dataset.modalities))
    expected = F.normalize(z["sem"], dim=1).numpy()
    np.testing.assert_allclose(foundation.embed(samples, "sem"), expected, atol=1e-6)
    np.testing.assert_allclose(Index.build(foundation, dataset, "sem").vectors, expected, atol=1e-6)
    rows = retrieval_table(foundation, dataset, part="train")
    assert {(row["query"], row["target"]) for row in rows} == {("a", "sem"), ("sem", "a")}


@pytest.mark.usefixtures("mlflow_store")
def test_a_predictor_is_fitted_on_the_centre_and_predicts_from_it(
    exported: Path, dataset: Dataset, tmp_path: Path
) -> None:
    recipe = FinetuneRecipe.model_validate(
        {
            "name": "gap",
            "model": str(exported),
            "data": str(dataset.folder),
            "target": "gap_ev",
            "seeds": [0],
            "rows": [{"strategy": s, "modalities": ["a", "sem"]} for s in ("probe", "frozen", "full", "scratch")],
            "optim": {"epochs": 2, "frozen_epochs": 3},
        }
    )
    comparison = Comparison(recipe, tmp_path / "out", report=lambda line: None)
    results = {result.row.strategy: result for result in comparison.run()}
    model = load(str(tmp_path / "out" / "predictor"))
    assert isinstance(model, PropertyModel) and comparison.best_row is not None
    samples = [dataset[int(position)] for position in comparison.data.positions["test"]]
    predicted = model.predict(samples)
    seen = [central(sample) if "sem" in sample.modalities else sample for sample in samples]
    np.testing.assert_allclose(
        predicted, model.predictor.predict(collate(seen, model.specs)).value[:, 0].numpy(), atol=1e-6
    )
    np.testing.assert_allclose(predicted, results[comparison.best_row.strategy].predictions[:, 0], atol=1e-4)
