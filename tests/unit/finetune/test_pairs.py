"""Pairs of materials through a recipe: what is read, how it is divided, what is trained and what is registered."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from finetune.compare import Comparison
from finetune.config import FinetuneRecipe, RowConfig
from finetune.loading import load
from finetune.pair_data import PairData
from finetune.pair_folds import pair_parts
from finetune.pair_model import PairModel, _from
from finetune.pair_table import PairTable, read_pairs
from launch.cli import app
from shards.augment import Augment
from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from tests.synthetic import hidden

pytestmark = pytest.mark.usefixtures("mlflow_store")
Pair = tuple[str, str]
LATE = RowConfig(strategy="late_fusion", modalities=("a", "b"))


def written(path: Path, pairs: list[Pair], values: list[float | None], column: str = "miscibility_ev") -> Path:
    rows = [f"{a},{b},{'' if v is None else v}" for (a, b), v in zip(pairs, values, strict=True)]
    path.write_text("\n".join([f"id_a,id_b,{column}", *rows]) + "\n")
    return path


@pytest.fixture(scope="session")
def pairs_file(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every second pair of the materials; what is known of a pair is a product of what causes both."""
    ids = [sample.id for sample in Dataset(toy_folder, [])]
    pairs = list(combinations(ids, 2))[::2]
    # the larger id comes first in a half of them
    pairs = [pair if i % 2 else pair[::-1] for i, pair in enumerate(pairs)]
    values = [float(hidden(a) @ hidden(b) + 2) for a, b in pairs]
    return written(tmp_path_factory.mktemp("pairs") / "pairs.csv", pairs, values)


def recipe(export_folder: Path, data: Path, pairs: Any, rows: list[Any], **changes: Any) -> FinetuneRecipe:
    tables = {
        "name": "pairs",
        "model": str(export_folder),
        "data": str(data),
        "target": "miscibility_ev",
        "pairs": pairs if isinstance(pairs, dict) else str(pairs),
        "seeds": (0,),
        "rows": [row if isinstance(row, RowConfig) else RowConfig(strategy=row, modalities=("a",)) for row in rows],
        "head": {"kind": "pair", "mode": "bilinear"},
        "optim": {"frozen_epochs": 20, "lr": 1e-2},
    }
    return FinetuneRecipe.model_validate({**tables, **changes})


def run(made: FinetuneRecipe, out: Path) -> tuple[Comparison, list[Any]]:
    comparison = Comparison(made, out, report=lambda line: None)
    return comparison, comparison.run()


def entities(pairs: list[Pair], rows: np.ndarray) -> set[str]:
    return {name for row in rows for name in pairs[row]}


@pytest.mark.parametrize("leave", ["both", "entity", "pair"])
def test_only_the_strict_division_trains_on_no_material_of_the_test_part(leave: str, toy: Dataset) -> None:
    split = toy.manifest.split("chemical_system").ids
    part_of = {name: part for part, ids in split.items() for name in ids}
    pairs = list(combinations(sorted(part_of), 2))
    parts = pair_parts(leave, pairs, part_of)  # type: ignore[arg-type]
    rows = [set(part.tolist()) for part in parts.values()]
    assert all(rows) and not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    fitted = entities(pairs, parts["train"]) | entities(pairs, parts["val"])
    test = entities(pairs, parts["test"])
    assert (not fitted & test) == (leave == "both")
    if leave == "both":
        assert test == set(split["test"])
    if leave == "entity":
        assert all(set(pairs[row]) - entities(pairs, parts["train"]) for row in parts["test"])
        assert sum(map(len, rows)) == len(pairs)
    if leave == "pair":
        assert test <= fitted and sum(map(len, rows)) == len(pairs)


def test_a_material_of_no_part_makes_a_pair_of_no_part() -> None:
    parts = pair_parts("entity", [("a", "b"), ("a", "x"), ("b", "c")], {"a": "train", "b": "train", "c": "test"})
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [0], "val": [], "test": [2]}


def test_pairs_are_read_with_gaps_and_a_material_beside_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", [("x", "y"), ("x", "x"), ("z", "x")], [1.5, None, -2.0])
    table = read_pairs(path, ["miscibility_ev"], {"x", "y", "z"})
    assert table.pairs == [("x", "y"), ("x", "x"), ("z", "x")]
    np.testing.assert_array_equal(table.values, [[1.5], [np.nan], [-2.0]])
    assert isinstance(table, PairTable)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id_a,id_b,gap_ev\nx,w,1\n", r"'w' in column 'id_b' is no id(.|\n)*line 2"),
        ("id_a,id_b,gap_ev\nx,,1\n", "'id_b' is empty"),
        ("id_a,id_b,gap_ev\nx,y,1\ny,x,2\n", r"there already(.|\n)*line 3(.|\n)*line 2 has it"),
        ("id_a,id_b,gap_ev\nx,x,1\nx,x,2\n", "there already"),
        ("id_a,id_b,gap_ev\nx,y,nan\n", "'nan' in column 'gap_ev' is no number"),
        ("id_a,id_b,gap_ev\nx,y,1.5 eV\n", "is no number"),
        ("id_a,id_B,gap_ev\nx,y,1\n", r"no column 'id_b'(.|\n)*id_B"),
        ("id_a,id_b,gap_eV\nx,y,1\n", r"no column 'gap_ev'(.|\n)*gap_eV"),
        ("id_a,id_b,gap_ev,gap_ev\nx,y,1,2\n", "'gap_ev' is there twice"),
        ("", "no column 'id_a'"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "p.csv", ["gap_ev"], {"x", "y"})
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(tmp_path / "absent.csv")


def test_a_recipe_of_pairs_trains_registers_and_predicts_in_either_order(
    export_folder: Path, toy_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    rows = [RowConfig(strategy="mean", modalities=()), "probe", "frozen", {"kind": "attentive", "dim": 8, "heads": 2}]
    comparison, results = run(recipe(export_folder, toy_folder, pairs_file, rows), tmp_path)
    table = {result.row.table["kind"]: result.summary()["test_mae"] for result in results}
    assert table["frozen"] < 0.7 * table["mean"], "the products are there to be learned"
    assert comparison.best_row is not None
    model = load("models:/pairs@champion")
    assert isinstance(model, PairModel)
    rows_of_test = comparison.data.parts["test"]
    pairs = [tuple(comparison.dataset[int(i)] for i in pair) for pair in rows_of_test.positions]
    there, back = model.predict(pairs, batch_size=7), model.predict([pair[::-1] for pair in pairs])
    best = next(result for result in results if result.row == comparison.best_row)
    np.testing.assert_allclose(there.values, best.predictions[:, 0], atol=1e-4)
    np.testing.assert_allclose(there.values, back.values, atol=1e-5)
    assert there.ids == list(rows_of_test.ids) and np.ptp(there.values) > 0.1
    one = model.predict(pairs[0])
    assert float(one) == pytest.approx(there.values[0], abs=1e-5)  # type: ignore[arg-type]
    assert one.lower < float(one) < one.upper and one.unit == "eV"  # type: ignore[union-attr,operator,arg-type]


def test_estimators_see_a_pair_alike_in_either_order(
    export_folder: Path, toy_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    data = Comparison(recipe(export_folder, toy_folder, pairs_file, ["frozen"]), tmp_path).data
    assert isinstance(data, PairData)
    materials = np.random.default_rng(0).normal(size=(len(data.materials("val")), 3))
    found = data.features("val", materials)
    swapped = data.parts["val"].positions[:, ::-1]
    first, second = (materials[np.searchsorted(data.materials("val"), column)] for column in swapped.T)
    np.testing.assert_allclose(found, np.concatenate([first + second, np.abs(first - second)], axis=1))
    assert not np.allclose(first - second, second - first), "the wrong variant: a difference with its sign"


@pytest.mark.parametrize("leave", ["both", "entity", "pair"])
def test_what_is_encoded_for_training_holds_no_test_material_in_the_strict_split(
    leave: str, export_folder: Path, toy_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    made = recipe(export_folder, toy_folder, {"file": str(pairs_file), "leave": leave}, ["frozen"])
    data = Comparison(made, tmp_path).data
    shared = np.intersect1d(data.materials("train"), data.materials("test"))
    assert (len(shared) == 0) == (leave == "both")
    number = torch.arange(5)
    read = data.materials("train")[data.places("train", number).numpy()]
    assert read.reshape(5, 2).tolist() == data.parts["train"].positions[:5].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"kind": "regression"}}, "'regression' predicts single materials"),
        ({"pairs": None}, "'pair' predicts pairs"),
        ({"rows": (RowConfig(strategy="full", modalities=("a",)),)}, "'full' does not take pairs"),
        ({"rows": (RowConfig(strategy="scale_shift", modalities=("a", "b")),)}, "does not take pairs"),
        ({"rows": (LATE,)}, "'late_fusion' does not take pairs"),
        ({"delta": "gap_ev"}, "take no 'delta'"),
        ({"augment": {"a": Augment(gaussian_noise=0.1)}}, "take no 'augment'"),
    ],
)
def test_what_does_not_go_with_pairs_is_refused_before_training(
    changes: dict[str, Any], message: str, export_folder: Path, toy_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    made = recipe(export_folder, toy_folder, pairs_file, ["frozen"])
    with pytest.raises(ConfigError, match=message):
        Comparison(made.model_copy(update=changes), tmp_path)


def test_too_few_pairs_in_a_part_are_refused_with_another_way(
    export_folder: Path, toy_folder: Path, toy: Dataset, tmp_path: Path
) -> None:
    train = list(toy.manifest.split("chemical_system").ids["train"])
    path = written(tmp_path / "p.csv", list(combinations(train[:5], 2)), [1.0] * 10)
    with pytest.raises(DataError, match=r"part 'val' has 0 labelled pairs(.|\n)*'entity', 'pair'"):
        Comparison(recipe(export_folder, toy_folder, path, ["frozen"]), tmp_path)
    Comparison(recipe(export_folder, toy_folder, {"file": str(path), "leave": "pair"}, ["frozen"]), tmp_path)


def test_the_command_predicts_a_table_of_pairs(
    export_folder: Path, toy_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    run(recipe(export_folder, toy_folder, pairs_file, ["frozen"]), tmp_path)
    predictor, table = str(tmp_path / "predictor"), tmp_path / "asked.csv"
    ids = [sample.id for sample in Dataset(toy_folder, [])][:3]
    written(table, [(ids[0], ids[1]), (ids[1], ids[2])], [None, None])

    def matloom(*arguments: object) -> str:
        arguments = ("predict", predictor, *arguments)
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    rows = json.loads(matloom("--pairs", table, "--data", toy_folder, "--json"))
    dataset, model = Dataset(toy_folder), load(predictor)
    first, second, third = (dataset[dataset.position(name)] for name in ids)
    assert isinstance(model, PairModel)
    expected = model.predict([(second, first), (third, second)]).values  # type: ignore[union-attr]
    np.testing.assert_allclose([row["value"] for row in rows], expected, atol=1e-5)
    assert [(row["id_a"], row["id_b"]) for row in rows] == [(ids[0], ids[1]), (ids[1], ids[2])]
    assert matloom("--pairs", table, "--data", toy_folder, "--csv").startswith("id_a,id_b,property,")
    assert matloom("--pairs", table, "--data", toy_folder).startswith(f"{ids[0]} + {ids[1]}: miscibility = ")
    with pytest.raises(ConfigError, match="names what is predicted"):
        matloom("x.cif", "--pairs", table)
    with pytest.raises(ConfigError, match="--pairs FILE"):
        matloom("--data", toy_folder, "--out", tmp_path / "out")
    assert _from(tmp_path, "asked.csv") == str(table) and _from(tmp_path, "CCO") == "CCO"
    with pytest.raises(DataError, match=r"no id(.|\n)*line 2"):
        matloom("--pairs", written(table, [("x", "y")], [None]), "--data", toy_folder)


def test_single_materials_are_refused_by_a_model_of_pairs(
    export_folder: Path, toy_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    comparison, _ = run(recipe(export_folder, toy_folder, pairs_file, ["frozen"]), tmp_path)
    model, sample = load(str(tmp_path / "predictor")), comparison.dataset[0]
    assert isinstance(model, PairModel)
    for wrong in ([sample], [(sample, sample, sample)], []):
        with pytest.raises(DataError, match="pair"):
            model.predict(wrong)
    with pytest.raises(ConfigError, match="not single ones"):
        model.estimate([sample])
    assert np.isfinite(float(model.predict((sample, sample))))  # type: ignore[arg-type]
