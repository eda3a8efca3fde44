"""Targets of several numbers through a recipe: tensors as labels, a spectrum as a modality that is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.compare import Comparison
from finetune.config import FinetuneRecipe, RowConfig
from finetune.heads.base import HEADS, Head
from finetune.heads.tensor import TensorHead
from finetune.loading import PropertyModel, load
from finetune.metrics import evaluate, evaluate_one, macro
from finetune.targets import Target, as_array, find_target, grouped
from finetune.units import describe
from shards.build import build
from shards.errors import ConfigError, DataError
from shards.labels import component, flat_labels, parse_component
from shards.reader import Dataset
from shards.schema import Sample
from shards.sources.base import Record
from tests.synthetic import FEATURES, POINTS, SPLITS, hidden, records

pytestmark = pytest.mark.usefixtures("mlflow_store")


def stiffness(id: str) -> np.ndarray:
    """A positive definite (6, 6) tensor, GPa, that depends on what causes the modalities."""
    cause = hidden(id)
    base = np.diag([90.0, 90, 90, 40, 40, 40]) + 30 * (np.arange(36).reshape(6, 6) % 7 == 1)
    return (base + base.T) / 2 + 8 * np.diag(np.resize(np.tanh(cause), 6))


def tensors() -> Iterator[Record]:
    for number, record in enumerate(records()):
        dielectric = np.diag(2 + np.tanh(hidden(record.id)[:3]))
        labels: dict[str, Any] = {"elastic_gpa": stiffness(record.id), "dielectric": dielectric}
        if number % 5 == 0:
            labels.pop("elastic_gpa")
        yield replace(record, labels={**record.labels, **labels})


@pytest.fixture(scope="session")
def tensor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tensors"
    build(tensors(), FEATURES, folder, name="tensors", splits=SPLITS, workers=1, shard_samples=16)
    return folder


def recipe(export_folder: Path, data: Path, target: str, head: dict[str, Any], rows: list[Any], **changes: Any) -> Any:
    tables = {
        "name": f"several-{target}",
        "model": str(export_folder),
        "data": str(data),
        "target": target,
        "seeds": (0,),
        "rows": [row if isinstance(row, RowConfig) else RowConfig(strategy=row, modalities=("a",)) for row in rows],
        "head": {"hidden": 16, **head},
        "optim": {"frozen_epochs": 10, "lr": 1e-2},
    }
    return FinetuneRecipe.model_validate({**tables, **changes})


def run(made: FinetuneRecipe, out: Path) -> tuple[Comparison, list[Any]]:
    comparison = Comparison(made, out, report=lambda line: None)
    return comparison, comparison.run()


MEAN = RowConfig(strategy="mean", modalities=())


def test_an_array_is_a_label_a_component_and_back() -> None:
    array = np.arange(6.0).reshape(2, 3)
    flat = flat_labels({"gap_ev": 1.5, "x_gpa": array})
    assert list(flat) == ["gap_ev", *(f"x_gpa[{i},{j}]" for i in range(2) for j in range(3))]
    assert parse_component("x_gpa[1,2]") == ("x_gpa", (1, 2)) and parse_component("gap_ev") == ("gap_ev", ())
    names = [name for name in flat if name != "gap_ev"]
    np.testing.assert_array_equal(as_array(names, np.array([[flat[name] for name in names]]))[0], array)
    assert describe("elastic_gpa[0,1]") == ("elastic[0,1]", "GPa") and describe("gap_ev") == ("gap", "eV")
    with pytest.raises(DataError, match="neither a number nor an array"):
        flat_labels({"x": [[1.0], [1.0, 2.0]]})


def test_a_symmetric_tensor_is_its_upper_triangle_and_is_made_whole_again() -> None:
    target = Target("e_gpa", tuple(TensorHead.parts_of((6, 6))))
    assert len(target.columns) == 21 and target.columns[:2] == ("e_gpa[0,0]", "e_gpa[0,1]")
    whole = stiffness("x")
    values = target.values(Sample(id="x", labels=flat_labels({"e_gpa": whole})))
    np.testing.assert_allclose(values, whole[np.triu_indices(6)])
    np.testing.assert_allclose(as_array(target.columns, np.array([values]))[0], whole)
    assert np.isnan(target.values(Sample(id="y"))).all()
    # the mean of two that all but agree; what does not is refused
    bent = whole.copy()
    bent[1, 0] += 2.0
    values = target.values(Sample(id="x", labels=flat_labels({"e_gpa": bent})))
    assert values[1] == pytest.approx(whole[0, 1] + 1.0)
    bent[1, 0] += 50.0
    with pytest.raises(DataError, match=r"'e_gpa' is not symmetric: \[0, 1\]"):
        target.values(Sample(id="x", labels=flat_labels({"e_gpa": bent})))
    # only the upper triangle may be there, as columns of a table
    upper = {component("e_gpa", index): float(whole[index]) for index in TensorHead.parts_of((6, 6))}
    np.testing.assert_allclose(target.values(Sample(id="x", labels=upper)), whole[np.triu_indices(6)])
    order = [component("d", index) for index in TensorHead.parts_of((3, 3))]
    assert order == ["d[0,0]", "d[1,1]", "d[2,2]", "d[1,2]", "d[0,2]", "d[0,1]"]
    with pytest.raises(ConfigError, match=r"shape \(4, 4\)"):
        TensorHead.parts_of((4, 4))
    assert len(Head.parts_of((3, 3))) == 9


@pytest.mark.parametrize(
    ("target", "shape", "head"),
    [
        ("elastic_gpa", (6, 6), {"kind": "tensor", "positive_definite": True}),
        ("elastic_gpa", (6, 6), {"kind": "tensor", "point_group": "432"}),
        ("dielectric", (3, 3), {"kind": "tensor"}),
        ("dielectric", (3, 3), {"kind": "regression"}),
    ],
    ids=str,
)
def test_a_tensor_is_a_target_of_a_recipe(
    target: str, shape: tuple[int, int], head: dict[str, Any], export_folder: Path, tensor_folder: Path, tmp_path: Path
) -> None:
    optim = {"frozen_epochs": 300, "lr": 1e-2}
    made = recipe(export_folder, tensor_folder, target, {**head, "dropout": 0.0}, [MEAN, "frozen"], optim=optim)
    comparison, results = run(made, tmp_path)
    model = load(f"models:/several-{target}@champion")
    assert isinstance(model, PropertyModel)
    test = comparison.data.parts["test"]
    samples = [comparison.dataset[int(i)] for i in test.positions]
    assert all(np.isfinite(test.targets.numpy()).all(axis=1)), "materials without the label are left out"
    model = load(str(tmp_path / "predictor"))
    found = model.predict(samples).arrays()[target]  # type: ignore[union-attr]
    assert found.shape == (len(samples), *shape) and np.isfinite(found).all()
    if head["kind"] == "tensor":
        np.testing.assert_array_equal(found, found.swapaxes(1, 2))
    if head.get("positive_definite"):
        assert (np.linalg.eigvalsh(found) > 0).all()
    if head.get("point_group"):
        np.testing.assert_allclose(found[:, 0, 0], found[:, 2, 2], rtol=1e-4)
        np.testing.assert_allclose(found[:, 0, 3], 0, atol=1e-3)
    table = {result.row.table["kind"]: result.summary() for result in results}
    # these crystals are not cubic: predictions that are made so cannot be right
    assert (table["frozen"]["test_mae"] < table["mean"]["test_mae"]) == ("point_group" not in head)
    names = [path.name for path in (tmp_path / "report").glob("parity*.png")]
    assert names == [f"parity_{target}.png"], "one plot of all components"
    assert "numbers)" in (tmp_path / "predictor" / "MODEL_CARD.md").read_text()


def test_a_spectrum_is_predicted_beside_the_mean_and_its_neighbours(
    export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    head = {"kind": "spectrum", "loss": "cdf", "hidden": 32, "dropout": 0.0}
    rows = [MEAN, RowConfig(strategy={"kind": "knn", "neighbours": [1, 3]}, modalities=("a",)), "probe", "frozen"]
    optim = {"frozen_epochs": 60, "lr": 1e-2}
    comparison, results = run(recipe(export_folder, toy_folder, "dos", head, rows, optim=optim), tmp_path)
    table = {result.row.table["kind"]: result.summary() for result in results}
    assert table["frozen"]["test_integral_score"] < table["mean"]["test_integral_score"]
    data = comparison.data
    assert data.names == tuple(f"dos[{i}]" for i in range(POINTS))
    train = data.targets["train"]
    assert np.abs(results[0].predictions - train.mean(0).numpy()).max() < 1e-5
    model = load(str(tmp_path / "predictor"))
    assert isinstance(model, PropertyModel)
    samples = [comparison.dataset[int(i)] for i in data.parts["test"].positions]
    blind = [replace(sample, arrays={"a": sample.arrays["a"]}) for sample in samples if "a" in sample.arrays]
    found = model.predict(blind).arrays()["dos"]  # type: ignore[union-attr]
    np.testing.assert_allclose(found, results[3].predictions, atol=1e-4)
    assert (found >= 0).all()


def test_the_score_is_the_share_of_the_area_that_differs() -> None:
    head = HEADS.get("spectrum")
    options = HEADS.options({"kind": "spectrum", "start": -2.0, "spacing": 1.0, "window": [-1.0, 1.0]})
    truth = torch.tensor([[9.0, 2.0, 2.0, 2.0, 9.0], [5.0, 0.0, 0.0, 0.0, 5.0], [float("nan"), 1.0, 1.0, 1.0, 1.0]])
    score = head.further_metrics(options, truth, truth)["integral_score"]
    assert score == 0.0
    wrong = truth + torch.tensor([100.0, 1.0, 0.0, 0.0, 100.0])
    # trapezoids: |1| at the window's end counts half, of an area of 4
    assert head.further_metrics(options, wrong, truth)["integral_score"] == pytest.approx(0.5 / 4)
    assert head.further_metrics(options, 3 * wrong, 3 * truth)["integral_score"] == pytest.approx(0.5 / 4)
    whole = HEADS.options({"kind": "spectrum"})
    assert head.further_metrics(whole, wrong, truth)["integral_score"] > 3, (
        "what lies outside of the window would count"
    )
    with pytest.raises(ConfigError, match="holds 1 energies"):
        head.further_metrics(HEADS.options({"kind": "spectrum", "window": [0.0, 0.2]}), truth, truth)


def test_many_targets_are_measured_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    targets, predictions = torch.randn(2, 30, 5, generator=generator)
    targets[:, 3] = 1.0
    targets[4] = float("nan")
    known = ~targets[:, 0].isnan()
    single = [evaluate_one("regression", predictions[known, i], targets[known, i]) for i in range(5)]
    assert evaluate("regression", predictions, targets) == pytest.approx(macro(single), rel=1e-5)


@pytest.mark.parametrize(
    ("target", "head", "row", "message"),
    [
        ("b", "regression", RowConfig(strategy="frozen", modalities=("a", "b")), "which is the target"),
        ("dos", "spectrum", RowConfig(strategy="knn", modalities=(), descriptors="dos"), "which is the target"),
        ("crystal", "spectrum", "frozen", "'crystal' is no target"),
        ("text", "spectrum", "frozen", "'text' is no target"),
        ("dos", "tensor", "frozen", r"shape \(24,\) is no tensor"),
        ("elastic_gp", "tensor", "frozen", "did you mean 'elastic_gpa'"),
    ],
)
def test_what_is_no_target_is_refused(
    target: str, head: str, row: Any, message: str, export_folder: Path, tensor_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Comparison(recipe(export_folder, tensor_folder, target, {"kind": head}, [row]), tmp_path)


def test_differences_are_of_single_numbers(export_folder: Path, tensor_folder: Path, tmp_path: Path) -> None:
    made = recipe(export_folder, tensor_folder, "dielectric", {"kind": "tensor"}, ["frozen"], delta="gap_ev")
    with pytest.raises(ConfigError, match="'delta' is of 1 numbers, the targets are 6"):
        Comparison(made, tmp_path)


def test_targets_are_found_by_name(tensor_folder: Path) -> None:
    dataset = Dataset(tensor_folder)
    assert find_target("gap_ev", dataset, Head.parts_of).columns == ("gap_ev",)
    assert find_target("dos", dataset, Head.parts_of).modality
    assert grouped(find_target("dielectric", dataset, TensorHead.parts_of).columns) == {"dielectric": list(range(6))}
