"""Rows of a recipe: the grammar of strategies, label fractions, differences, transfer, and what is stored of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.adapt.base import ADAPTATIONS
from finetune.compare import Comparison
from finetune.config import FinetuneRecipe, RowConfig
from finetune.estimators.base import ESTIMATORS
from finetune.loading import PropertyModel, load
from finetune.predictor import build_predictor, read_predictor
from finetune.rows import transfer
from shards.build import build
from shards.errors import ConfigError, DataError
from shards.sources.base import Record
from tests.synthetic import FEATURES, SPLITS, hidden, records

pytestmark = pytest.mark.usefixtures("mlflow_store")
ADAPTED = [
    "frozen",
    "full",
    "scratch",
    {"kind": "full", "layer_decay": 0.5},
    {"kind": "last_n", "n": 1},
    {"kind": "staged", "epochs": [1]},
    {"kind": "lora", "rank": 2},
    {"kind": "lora", "rank": 2, "merge": False},
    "bitfit",
    "scale_shift",
    {"kind": "attentive", "dim": 8, "heads": 2},
]


def several_levels() -> Iterator[Record]:
    """The toy records with two levels of one property, which differ by something simple, and a second property."""
    for record in records():
        cause = hidden(record.id)
        low = float(5 * np.sin(20 * cause).sum())
        labels = {"low_ev": low, "high_ev": low + float(cause[0]), "cause_ev": float(cause[1])}
        if int(record.tags["formula"].removeprefix("LiCoO")) % 3 == 0:
            labels.pop("cause_ev")
        yield replace(record, labels={**record.labels, **labels})


@pytest.fixture(scope="session")
def levels_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "levels"
    build(several_levels(), FEATURES, folder, name="levels", splits=SPLITS, workers=1, shard_samples=16)
    return folder


def recipe(export_folder: Path, data: Path, rows: list[Any], **changes: Any) -> FinetuneRecipe:
    tables = {
        "name": "rows",
        "model": str(export_folder),
        "data": str(data),
        "target": "gap_ev",
        "seeds": (0,),
        "rows": [row if isinstance(row, RowConfig) else RowConfig(strategy=row, modalities=("a", "b")) for row in rows],
        "optim": {"epochs": 2, "frozen_epochs": 3},
    }
    return FinetuneRecipe.model_validate({**tables, **changes})


def run(recipe: FinetuneRecipe, out: Path) -> tuple[Comparison, list[Any]]:
    comparison = Comparison(recipe, out, report=lambda line: None)
    return comparison, comparison.run()


@pytest.mark.parametrize("strategy", ADAPTED, ids=str)
def test_what_is_stored_predicts_what_was_trained(
    strategy: Any, export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    comparison, (result,) = run(recipe(export_folder, toy_folder, [strategy]), tmp_path)
    if strategy == "scratch":
        assert comparison.best_row is None and not (tmp_path / "predictor").exists()
        return
    model = load(str(tmp_path / "predictor"))
    assert isinstance(model, PropertyModel)
    assert model.info.adaptation["kind"] == RowConfig(strategy=strategy).table["kind"]
    test = comparison.data.parts["test"]
    samples = [comparison.dataset[int(i)] for i in test.positions]
    value = model.estimate(samples).value.numpy()
    np.testing.assert_allclose(value, result.predictions, atol=1e-5)
    estimated = model.estimate(samples)
    assert estimated.lower is not None and estimated.upper is not None
    assert (estimated.lower < estimated.value).all() and (estimated.value < estimated.upper).all()


def test_a_head_that_keeps_rows_knows_which_belong_together(
    export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    """Samples of one chemical system, by which the split goes, are no neighbours of each other in training."""
    head = {"kind": "retrieval_augmented"}
    comparison = Comparison(
        recipe(export_folder, toy_folder, ["frozen"], head=head), tmp_path, report=lambda line: None
    )
    predictor = comparison.fitter.fit(comparison.recipe.rows[0], 0).predictor
    assert predictor is not None
    rows = comparison.data.parts["train"].positions
    systems = [comparison.dataset[int(i)].tags["chemical_system"] for i in rows]
    groups = predictor.head.groups.tolist()
    assert len(set(systems)) < len(systems) == len(groups)
    together = [[a == b for b in groups] for a in groups]
    assert together == [[a == b for b in systems] for a in systems]


def test_estimators_and_fusions_are_rows_too(export_folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    both = ("a", "b")
    rows = [
        RowConfig(strategy="mean", modalities=()),
        RowConfig(strategy="probe", modalities=both),
        RowConfig(strategy={"kind": "random_forest", "trees": 5}, modalities=both),
        RowConfig(strategy="frozen", modalities=both, fusion={"kind": "gated", "dim": 8, "form": "attention"}),
    ]
    comparison, results = run(recipe(export_folder, toy_folder, rows), tmp_path)
    labels = [result.summary()["strategy"] for result in results]
    assert labels == ["mean", "probe", "random_forest(trees=5)", "frozen+gated"]
    model = load(str(tmp_path / "predictor"))
    assert isinstance(model, PropertyModel) and model.info.fusion == {"kind": "gated", "dim": 8, "form": "attention"}
    sample = next(sample for sample in comparison.dataset if {"a", "b"} <= sample.modalities)
    importance = model.estimate([sample]).importance
    assert importance is not None and importance.sum().item() == pytest.approx(1.0, abs=1e-5)
    card = (tmp_path / "predictor" / "MODEL_CARD.md").read_text()
    assert "`gated`" in card and "calibrated" in card and "val_mae" in card


def test_subsets_of_labels_are_nested_and_of_the_size_that_was_asked_for(
    export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    data = Comparison(recipe(export_folder, toy_folder, ["frozen"]), tmp_path).data
    shares = (0.2, 0.4, 0.8, 1.0)
    chosen = [set(data.training(share, seed=0).tolist()) for share in shares]
    assert all(small < large for small, large in pairwise(chosen))
    assert [len(c) for c in chosen] == [int(np.ceil(share * len(chosen[-1]))) for share in shares]
    assert set(data.training(0.4, seed=1).tolist()) != chosen[1]


def test_a_row_with_few_labels_looks_at_no_others(export_folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    row = RowConfig(strategy="mean", modalities=(), label_fraction=0.3)
    comparison, (result,) = run(recipe(export_folder, toy_folder, [row], seeds=(0, 1)), tmp_path)
    chosen = comparison.data.training(0.3, seed=0)
    expected = comparison.data.targets["train"][chosen].mean().item()
    assert result.predictions[:, 0] == pytest.approx(expected)
    assert result.summary()["seeds"] == 2 and result.summary()["strategy"] == "mean 30%"
    for twins in (False, True):
        batches = comparison.data.streamed(("a",), "train", 0, chosen=chosen, twins=twins)
        assert sum(len(example[1]) for example in batches(0)) == len(chosen)


def test_unlabelled_samples_join_without_their_labels(export_folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    made = recipe(
        export_folder, toy_folder, ["frozen", "full"], optim={"epochs": 2, "frozen_epochs": 2, "feature_noise": 0.1},
        consistency={"unlabelled": True}, augment={"a": {"gaussian_noise": 0.1}},
    )  # fmt: skip
    comparison, _ = run(made, tmp_path)
    data, part = comparison.data, comparison.data.parts["train"]
    assert 0 < int(part.labelled.sum()) < len(part.ids) == len(comparison.dataset.positions("chemical_system", "train"))
    chosen = data.training(0.5, seed=0)
    seen = torch.cat([example[1] for example in data.streamed(("a",), "train", 0, chosen=chosen)(0)])
    assert len(seen) == len(part.ids) and int((~seen.isnan()).sum()) == len(chosen)
    assert data.parts["test"].labelled.all(), "nothing is tested without a label"


def test_noise_is_drawn_anew_each_epoch_and_is_off_in_evaluation(
    export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    comparison = Comparison(recipe(export_folder, toy_folder, ["frozen"]), tmp_path)
    data = comparison.data
    row = comparison.recipe.rows[0]
    predictor = comparison.fitter._predictor(row, row.plan())  # type: ignore[arg-type]
    encoded = data.encoded(predictor.featurizer, row.modalities)

    def first(part: str, epoch: int, noise: float) -> torch.Tensor:
        return next(iter(data.cached(encoded, part, 0, noise=noise)(epoch)))[0].encoded["a"].vector

    order = np.random.default_rng([0, 1]).permutation(len(data.parts["train"].ids))[: data.batch_size]
    clean = encoded["train"].columns["a"].vector[order]
    assert torch.equal(first("train", 1, 0.0), clean)
    assert torch.equal(first("train", 1, 0.1), first("train", 1, 0.1)), "a function of seed and epoch"
    assert not torch.equal(first("train", 1, 0.1), clean)
    noises = [first("train", epoch, 0.1) - first("train", epoch, 0.0) for epoch in (0, 1)]
    assert not torch.equal(*noises)


def test_differences_are_learned_reported_in_full_and_need_their_lower_level_in_use(
    export_folder: Path, levels_folder: Path, tmp_path: Path
) -> None:
    rows = ["probe", "frozen"]
    tables = {"target": "high_ev", "optim": {"frozen_epochs": 60, "lr": 1e-2}}
    _, direct = run(recipe(export_folder, levels_folder, rows, **tables), tmp_path / "direct")
    comparison, found = run(recipe(export_folder, levels_folder, rows, delta="low_ev", **tables), tmp_path / "delta")
    for with_delta, without in zip(found, direct, strict=True):
        assert with_delta.summary()["test_mae"] < 0.2 * without.summary()["test_mae"]
        assert with_delta.summary()["test_r2"] > 0.9, "of the whole property, not of the difference"
    model = load(str(tmp_path / "delta" / "predictor"))
    assert isinstance(model, PropertyModel) and model.info.delta == ("low_ev",)
    sample = comparison.dataset[int(comparison.data.positions["test"][0])]
    assert model.estimate([sample]).value.item() == pytest.approx(found[1].predictions[0, 0], abs=1e-4)
    moved = replace(sample, labels={"low_ev": sample.labels["low_ev"] + 100.0})
    before, after = model.estimate([sample]), model.estimate([moved])
    assert (after.value - before.value).item() == pytest.approx(100.0, abs=1e-3)
    assert before.lower is not None and after.lower is not None
    assert (after.lower - before.lower).item() == pytest.approx(100.0, abs=1e-3)
    with pytest.raises(DataError, match="lacks the label 'low_ev'"):
        model.estimate([replace(sample, labels={})])


def test_several_targets_with_missing_labels_are_one_row(
    export_folder: Path, levels_folder: Path, tmp_path: Path
) -> None:
    made = recipe(export_folder, levels_folder, ["frozen", "probe"], target=("high_ev", "cause_ev"))
    comparison, results = run(made, tmp_path)
    known = ~comparison.data.targets["train"].isnan()
    assert known[:, 0].all() and 0 < known[:, 1].sum() < len(known)
    assert results[0].predictions.shape[1] == 2
    assert isinstance(load(str(tmp_path / "predictor")), PropertyModel)


def test_a_row_starts_from_another_property(export_folder: Path, levels_folder: Path, tmp_path: Path) -> None:
    run(recipe(export_folder, levels_folder, ["full"], target="high_ev"), tmp_path / "first")
    other = str(tmp_path / "first" / "predictor")
    made = recipe(
        export_folder,
        levels_folder,
        [RowConfig(strategy={"kind": "scale_shift", "head": "frozen"}, modalities=("a", "b"), start=other)],
        target="cause_ev",
    )
    comparison, (result,) = run(made, tmp_path / "second")
    assert result.summary()["strategy"] == "scale_shift(head=frozen) transferred"
    first, _, _ = read_predictor(tmp_path / "first" / "predictor")
    second, info, _ = read_predictor(tmp_path / "second" / "predictor")
    assert info.start == other
    mine, theirs = second.featurizer.encoders.state_dict(), first.featurizer.encoders.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    plain = build_predictor(
        comparison.export, ("a", "b"), made.head_options(), ("cause_ev",),
        adaptation=ADAPTATIONS.options({"kind": "full"}), pretrained=True,
    )  # fmt: skip
    mean = plain.head.scale.mean.clone()
    transfer(plain, other)
    assert torch.equal(plain.head.layers[1].weight, first.head.layers[1].weight)
    assert torch.equal(plain.head.scale.mean, mean), "scales are those of the new target"
    with pytest.raises(ConfigError, match="no predictor to start from"):
        run(made.model_copy(update={"rows": (RowConfig(strategy="full", modalities=("a",), start=other),)}), tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"strategy": "frosen"}, "did you mean 'frozen'"),
        ({"strategy": {"kind": "lora", "rang": 3}}, "did you mean 'rank'"),
        ({"strategy": {"rank": 3}}, "no strategy"),
        ({"strategy": "probe", "fusion": {"kind": "gated"}}, "takes no 'fusion'"),
        ({"strategy": "scratch", "start": "models:/x@champion"}, "takes no 'start'"),
        ({"strategy": {"kind": "scale_shift", "head": "frozen"}}, "must come from somewhere"),
        ({"strategy": "frozen", "fusion": {"kind": "gatet"}}, "did you mean 'gated'"),
        ({"strategy": "attentive", "fusion": {"kind": "gated"}}, "by itself"),
    ],
)
def test_rows_that_make_no_sense_are_refused_with_a_way_out(
    row: dict[str, Any], message: str, export_folder: Path, toy_folder: Path, tmp_path: Path
) -> None:
    made = recipe(export_folder, toy_folder, [RowConfig.model_validate({"modalities": ("a", "b"), **row})])
    with pytest.raises(ConfigError, match=message):
        run(made, tmp_path)


def test_recipes_that_make_no_sense_are_refused(export_folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"delta": ("gap_ev", "gap_ev")}, "2 labels for 1 targets"),
        ({"consistency": {"weight": 1.0}}, "there are none"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(export_folder, toy_folder, ["frozen"], **changes)
    classes = recipe(export_folder, toy_folder, ["frozen"], delta="gap_ev", head={"kind": "classification"})
    with pytest.raises(ConfigError, match="no differences"):
        Comparison(classes, tmp_path)


def test_no_kind_is_an_adaptation_and_an_estimator() -> None:
    assert not set(ADAPTATIONS.kinds()) & set(ESTIMATORS.kinds())


def test_an_estimator_may_look_at_descriptors_in_place_of_vectors(
    export_folder: Path, levels_folder: Path, tmp_path: Path
) -> None:
    """The classical baseline: in the inputs themselves, this label is all but linear."""
    row = RowConfig(strategy="probe", modalities=(), descriptors="a")
    _, (result,) = run(recipe(export_folder, levels_folder, [row], target="cause_ev"), tmp_path)
    assert result.summary()["strategy"] == "probe of a" and result.summary()["test_r2"] > 0.5
    for wrong in (
        {"strategy": "frozen", "modalities": (), "descriptors": "a"},
        {"strategy": "probe", "modalities": ("a",), "descriptors": "a"},
    ):
        with pytest.raises(ConfigError, match="cannot look at descriptors"):
            RowConfig(**wrong).check()
