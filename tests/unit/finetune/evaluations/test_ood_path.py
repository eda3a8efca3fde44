"""The documented path to a figure above the training range, and the ways to a dishonest one, which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune.compare import Comparison
from finetune.config import FinetuneRecipe
from finetune.loading import PropertyModel, load
from launch.cli import app
from launch.evaluate_cli import evaluate
from pretrain.config import parse_recipe
from shards.errors import ConfigError
from shards.reader import Dataset
from tests.random_models import write_model
from tests.unit.finetune.evaluations.linear import LABEL, build_linear

pytestmark = pytest.mark.usefixtures("mlflow_store")
ROWS = [{"strategy": "frozen", "modalities": ("left", "right")}]


def pretrained(folder: Path, data: Path, split: str) -> str:
    """A model whose recipe says that it was pretrained on a split of the data; its weights are random."""
    dataset = Dataset(data, ["left", "right"])
    tables: dict[str, Any] = {
        "name": "toy", "data": {"path": str(data), "split": split}, "projection": {"dim": 8},
        "modalities": {name: {"encoder": {"kind": "vector", "dim": 32}} for name in ("left", "right")},
        "objective": {"kind": "anchored", "anchor": "left"},
    }  # fmt: skip
    recipe = parse_recipe(tables, where="test")
    return str(write_model(folder, recipe, dataset, data_name="linear", data_contents=dataset.contents))


def recipe(model: str, data: Path, **changes: Any) -> FinetuneRecipe:
    tables = {
        "name": "top", "model": model, "data": str(data), "target": LABEL, "split": "top", "seeds": (0,), "rows": ROWS,
        "head": {"kind": "linear"}, "optim": {"frozen_epochs": 150, "lr": 0.03},
    }  # fmt: skip
    return FinetuneRecipe.model_validate({**tables, **changes})


def finetuned(out: Path, plan: FinetuneRecipe) -> str:
    """Fine-tune; return the folder of the predictor."""
    Comparison(plan, out, report=lambda line: None).run()
    return str(out / "predictor")


def test_shards_split_then_finetune_then_evaluate(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    build_linear(data, count=300)
    split = ["shards", "split", str(data), "top", "--by", "top_quantile"]
    done = CliRunner().invoke(app, [*split, "--set", f"label={LABEL}", "--set", "quantile=0.1"])
    assert done.exit_code == 0, done.output
    # pretrained on another split, its model has seen the structures above the range, though not their labels
    elsewhere = pretrained(tmp_path / "elsewhere", data, "chemical_system")
    with pytest.raises(ConfigError, match="pretrained on split 'chemical_system'"):
        Comparison(recipe(elsewhere, data), tmp_path / "refused")
    top = finetuned(out, recipe(pretrained(tmp_path / "model", data, "top"), data))
    model = load(top)
    assert isinstance(model, PropertyModel) and model.info.split == "top"
    assert model.info.data_contents == tuple(Dataset(data).contents)
    evaluate(top, data=str(data), split="top", only=["ood"], out=tmp_path / "report")
    (row,) = json.loads((tmp_path / "report" / "report" / "findings.json").read_text())["ood"]["tables"]["ood"]
    labels = {
        part: [s.labels[LABEL] for s in map(Dataset(data).__getitem__, Dataset(data).positions("top", part))]
        for part in ("train", "test")
    }
    assert row["threshold"] == pytest.approx(max(labels["train"]), rel=1e-5) and row["n_ood"] >= len(labels["test"])
    assert row["highest_prediction"] > row["threshold"] and row["recall"] > 0.3
    assert row["precision_of_top"] > 2 * row["chance"]
    # the wrong variant: a predictor of another split was trained on most of what is above the range
    other = finetuned(tmp_path / "other", recipe(elsewhere, data, split="chemical_system"))
    for uri in (other, elsewhere):
        with pytest.raises(ConfigError, match="trained on split 'chemical_system'"):
            evaluate(uri, data=str(data), split="top", out=tmp_path / "never")
