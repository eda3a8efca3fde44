"""`matloom search` and `matloom discover` as a user calls them, within this process."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from launch.cli import app
from shards.errors import ConfigError
from shards.reader import Dataset
from tests.unit.finetune.conftest import export_folder, recipe  # noqa: F401  fixtures


def matloom(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def rows(*arguments: object) -> list[dict[str, Any]]:
    return json.loads(matloom(*arguments, "--json"))


def test_search_by_a_material_of_the_data_set(export_folder: Path, toy_folder: Path, toy: Dataset) -> None:  # noqa: F811
    common = ("search", export_folder, "--id", toy.ids[4], "--data", toy_folder, "--among", "a", "-k", 4)
    found = rows(*common)
    assert found[0]["id"] == toy.ids[4] and found[0]["similarity"] == pytest.approx(1) and len(found) == 4
    without = rows(*common, "--exclude-group")
    groups = {sample.id: sample.tags["chemical_system"] for sample in toy}
    assert groups[toy.ids[4]] == "X1" and toy.ids[4] not in {row["id"] for row in without}
    labelled = rows(*common, "--where", "gap_ev=1..2", "--element", "Li")
    assert labelled and all(1 <= row["labels"]["gap_ev"] <= 2 for row in labelled)
    assert toy.ids[4] in matloom(*common)


def test_search_keeps_its_index(export_folder: Path, toy_folder: Path, toy: Dataset, tmp_path: Path) -> None:  # noqa: F811
    common = ("search", export_folder, "--id", toy.ids[0], "--data", toy_folder, "--among", "a")
    plain = rows(*common)
    kept = rows(*common, "--index", tmp_path / "index")
    assert (tmp_path / "index" / "seal.json").exists()
    assert plain == kept == rows(*common, "--index", tmp_path / "index") == rows(*common, "--faiss", "never")


def test_one_query_is_needed(export_folder: Path, toy_folder: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="one query is needed"):
        matloom("search", export_folder, "--data", toy_folder)


def test_discover_by_likeness(export_folder: Path, toy_folder: Path, toy: Dataset, tmp_path: Path) -> None:  # noqa: F811
    """A picture of a query is beyond the toy model: what it reads is given as a table of numbers in Python alone."""
    from finetune.discover import discover
    from finetune.loading import load_foundation

    with pytest.raises(ConfigError, match="nothing to look for"):
        matloom("discover", toy_folder, "--foundation", export_folder)
    with pytest.raises(ConfigError, match="need a pretrained model"):
        matloom("discover", toy_folder, "--text", "x")
    with pytest.raises(ConfigError, match="predicts no property"):
        matloom("discover", toy_folder, "--predictor", export_folder, "--goal", "gap_ev=max")
    found = discover(toy, foundation=load_foundation(str(export_folder)), like=toy[3], among="a", k=2)
    assert found.rows[0]["id"] == toy.ids[3]


def test_discover_with_a_stored_predictor(
    export_folder: Path,  # noqa: F811
    toy_folder: Path,
    toy: Dataset,
    tmp_path: Path,
) -> None:
    from finetune.loading import PropertyModel, load

    predictor = stored_predictor(export_folder, toy, tmp_path / "predictor")
    out = tmp_path / "found.csv"
    common = ("discover", toy_folder, "--predictor", predictor, "--goal", "gap_ev=max", "-k", 3, "--out", out)
    known = ("--foundation", export_folder, "--known", toy_folder, "--part", "chemical_system:train", "--among", "a")
    found = json.loads(matloom(*common, *known, "--json"))
    model = load(str(predictor))
    assert isinstance(model, PropertyModel)
    values = np.asarray(model.predict(list(toy.select(["a"]))))
    assert [row["id"] for row in found["rows"]] == [toy.ids[i] for i in np.argsort(-values, kind="stable")[:3]]
    assert found["screened"] == 60 and found["rows"][0]["gap_ev_unit"] == "eV"
    assert found["rows"][0]["nearest_known"] in toy.manifest.split("chemical_system").ids["train"]
    with out.open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == [row["id"] for row in found["rows"]]
    assert "60 screened, 0 refused" in matloom(*common)


def stored_predictor(export_folder: Path, toy: Dataset, folder: Path) -> Path:  # noqa: F811
    """A predictor with random weights."""
    import torch

    from finetune.adapt.base import ADAPTATIONS
    from finetune.heads.base import HEADS
    from finetune.predictor import PredictorInfo, build_predictor, write_predictor
    from pretrain.export import read_export

    export, head = read_export(export_folder), HEADS.options({"kind": "regression"})
    torch.manual_seed(0)
    adaptation = ADAPTATIONS.options({"kind": "frozen"})
    predictor = build_predictor(export, ("a",), head, ("gap_ev",), adaptation=adaptation, pretrained=True)
    predictor.head.fit(torch.tensor([[0.0], [1.0], [2.0]]))
    info = PredictorInfo(
        targets=("gap_ev",), task="regression", modalities=("a",), head=head.model_dump(), foundation="toy",
        foundation_seal="0", strategy="frozen", metrics={},
    )  # fmt: skip
    write_predictor(folder, predictor, export, info)
    return folder
