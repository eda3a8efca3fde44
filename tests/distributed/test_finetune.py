"""Fine-tuning on two ranks gives what one rank gives: uneven batches, missing labels, modalities that a rank lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import spawn

ROWS: dict[str, dict[str, Any]] = {
    "full": {"strategy": "full"},
    "frozen": {"strategy": "frozen"},
    "gated": {"strategy": "frozen", "fusion": {"kind": "gated", "dim": 8}},
    "staged": {"strategy": {"kind": "staged", "epochs": [1, 2]}},
    "lora": {"strategy": {"kind": "lora", "rank": 2}},
    "scale_shift": {"strategy": "scale_shift"},
    "few labels": {"strategy": "full", "label_fraction": 0.4},
    "static gate": {"strategy": {"kind": "experts", "gate": "static", "width": 5, "regulariser": 0.5}},
    "input gate": {"strategy": {"kind": "experts", "gate": "input"}},
}
# batches of 7 of about 18 rows: 4 + 3 rows on two ranks, and a last batch of 4 or less
OPTIM = {"epochs": 3, "frozen_epochs": 3, "batch_size": 7, "lr": 1e-2, "feature_noise": 0.1}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}


def fitted(
    model: str, data: str, out: str, names: list[str], changes: dict[str, Any], environment: dict[str, str]
) -> Any:
    """Fit rows on this rank; of each the weights, the validation metrics and the sorted test predictions."""
    import os

    os.environ.update(environment)
    from finetune.compare import Comparison
    from finetune.config import FinetuneRecipe

    rows = [{"modalities": ("a", "b", "c"), **ROWS[name]} for name in names]
    for row in rows:
        if isinstance(row["strategy"], dict) and row["strategy"]["kind"] == "experts":
            row["strategy"] = {**row["strategy"], "models": (model, model)}
    recipe = FinetuneRecipe.model_validate(
        {
            "name": "ranks", "model": model, "data": data, "target": "gap_ev", "rows": rows,
            "optim": OPTIM, "head": {"kind": "regression", "dropout": 0.0}, **changes,
        }
    )  # fmt: skip
    comparison = Comparison(recipe, Path(out), report=lambda line: None)
    results = {}
    for name, row in zip(names, recipe.rows, strict=True):
        outcome = comparison.fitter.fit(row, seed=0)
        assert outcome.predictor is not None
        weights = {key: value.numpy().copy() for key, value in outcome.predictor.state_dict().items()}
        results[name] = weights, outcome.validation, outcome.predictions.sort(dim=0).values.numpy()
    kind = comparison.accelerator.distributed_type.value
    return results, comparison.accelerator.num_processes, kind


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> str:
    from pretrain.config import parse_recipe
    from shards.reader import Dataset
    from tests.random_models import write_model

    recipe = parse_recipe(
        {
            "name": "toy",
            "data": {"path": str(toy_folder), "batch_size": 16},
            "modalities": {name: {"encoder": {"kind": "vector", "dim": 8}} for name in "abc"},
            "projection": {"dim": 8},
            "objective": {"kind": "anchored", "anchor": "a"},
        },
        where="test",
    )
    dataset = Dataset(toy_folder, list(recipe.modalities))
    folder = tmp_path_factory.mktemp("export") / "model"
    return str(write_model(folder, recipe, dataset, data_name="toy", data_contents=dataset.contents))


def same(one: Any, other: Any, names: list[str], *, atol: float) -> None:
    for name in names:
        (weights, metrics, predictions), (theirs, their_metrics, their_predictions) = one[name], other[name]
        assert weights.keys() == theirs.keys()
        for key, value in weights.items():
            assert value == pytest.approx(theirs[key], abs=atol), (name, key)
        assert metrics == pytest.approx(their_metrics, abs=10 * atol), name
        assert len(predictions) == len(their_predictions)
        assert predictions == pytest.approx(their_predictions, abs=10 * atol), name


def both(model: str, data: Path, tmp_path: Path, names: list[str], **changes: Any) -> tuple[Any, Any]:
    """Results of one rank and of the first of two, whose ranks agree."""
    arguments = (model, str(data), str(tmp_path / "out"), names, changes, {})
    ((one, world, _),) = spawn(fitted, 1, *arguments)
    assert world == 1
    (first, two, kind), (second, _, _) = spawn(fitted, 2, *arguments)
    assert two == 2 and kind == "MULTI_CPU"
    same(first, second, names, atol=0.0)
    return one, first


def test_two_ranks_are_one(model: str, toy_folder: Path, tmp_path: Path) -> None:
    names = list(ROWS)
    one, two = both(model, toy_folder, tmp_path, names)
    same(one, two, names, atol=2e-5)


def test_two_ranks_are_one_with_missing_labels_and_batches_taken_together(
    model: str, toy_folder: Path, tmp_path: Path
) -> None:
    """Rows without labels take part by the consistency term alone; where they fall differs between the ranks."""
    names = ["full", "frozen"]
    changes = {
        "consistency": {"weight": 1.0, "ramp_epochs": 0, "unlabelled": True},
        "augment": {"a": {"gaussian_noise": 0.2, "drop": 0.2}},
        "optim": {**OPTIM, "accumulate": 3},
    }
    one, two = both(model, toy_folder, tmp_path, names, **changes)
    same(one, two, names, atol=2e-5)


def test_a_mean_of_the_ranks_means_would_be_caught(model: str, toy_folder: Path, tmp_path: Path) -> None:
    """The wrong variant: every rank's loss weighs the same, however few labels it has."""
    arguments = (model, str(toy_folder), str(tmp_path / "out"), ["full"], {}, {})
    ((one, _, _),) = spawn(fitted, 1, *arguments)
    (wrong, _, _), _ = spawn(unweighted, 2, *arguments)
    with pytest.raises(AssertionError):
        same(one, wrong, ["full"], atol=2e-5)


def unweighted(*arguments: Any) -> Any:
    import finetune.fit

    finetune.fit.weights_of = lambda counts, accelerator: [torch.tensor(1.0) for _ in counts]
    return fitted(*arguments)


def test_deepspeed_through_accelerate_is_one_rank_too(model: str, toy_folder: Path, tmp_path: Path) -> None:
    names = ["full", "frozen"]
    arguments = (model, str(toy_folder), str(tmp_path / "out"), names, {})
    ((one, _, _),) = spawn(fitted, 1, *arguments, {})
    results = spawn(fitted, 2, *arguments, DEEPSPEED)
    assert [(world, kind) for _, world, kind in results] == [(2, "DEEPSPEED")] * 2
    same(one, results[0][0], names, atol=1e-4)
