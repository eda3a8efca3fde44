"""No label of the test part reaches a fit: with every one of them changed, all that is fitted keeps its bits.

Published code of several systems chose its epoch on the test fold (DeepDTAGen, MD-Syn, MultiSyn).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.adapt.base import ADAPTATIONS
from finetune.champion import measured
from finetune.compare import Comparison
from finetune.config import FinetuneRecipe, RowConfig
from finetune.estimators.base import ESTIMATORS
from finetune.metrics import evaluate
from finetune.rows import Outcome, RowFitter
from pretrain.tracking import Tracker
from shards.build import build
from shards.reader import Dataset
from shards.sources.base import Record
from tests.synthetic import FEATURES, SPLITS, records
from tests.unit.finetune.predictors import digest

SPLIT = "chemical_system"
STRATEGIES = [{"kind": kind} for kind in (*ADAPTATIONS.kinds(), *ESTIMATORS.kinds())]
HEADS = ["linear", "gaussian", "quantile", "conditional_posterior", "bilinear_transduction", "retrieval_augmented"]


@pytest.fixture(scope="module")
def folders(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy data twice, with other labels in the part ``test``: all of them far above, or far below.

    Whatever of several rows is best above is that which predicts the highest values, below the lowest.
    """
    toy = Dataset(toy_folder)
    held_out = {toy.ids[int(i)] for i in toy.positions(SPLIT, "test")}

    def changed(by: float) -> Iterator[Record]:
        for record in records():
            labels = {name: value + by for name, value in record.labels.items()}
            yield replace(record, labels=labels) if record.id in held_out else record

    found = {}
    for name, by in (("above", 1e3), ("below", -1e3)):
        found[name] = tmp_path_factory.mktemp("held_out") / name
        build(changed(by), FEATURES, found[name], name="toy", splits=SPLITS, workers=1, shard_samples=16)
    return found


def compared(export: Path, data: Path, out: Path, rows: list[RowConfig], **changes: Any) -> Comparison:
    table = {
        "name": "held-out",
        "model": str(export),
        "data": str(data),
        "target": "gap_ev",
        "seeds": (0,),
        "rows": rows,
        "optim": {"epochs": 3, "frozen_epochs": 3, "lr": 0.05},
        **changes,
    }
    return Comparison(FinetuneRecipe.model_validate(table), out, report=lambda line: None)


def fitted(export: Path, data: Path, out: Path, strategy: dict[str, Any], **changes: Any) -> Outcome:
    kind = strategy["kind"]
    modalities = () if kind == "mean" else ("a", "b")
    if kind == "experts":
        strategy = {**strategy, "models": [str(export)] * 2}
    row = RowConfig(strategy=strategy, modalities=modalities)
    return compared(export, data, out, [row], **changes).fitter.fit(row, 0)


def same(first: Outcome, second: Outcome) -> bool:
    """Tell whether what was fitted is the same to the last bit; the targets are not, of course."""
    assert not torch.equal(first.targets, second.targets)
    weights = [None if found.predictor is None else digest(found.predictor) for found in (first, second)]
    return (
        weights[0] == weights[1]
        and first.validation == second.validation
        and torch.equal(first.predictions, second.predictions)
    )


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda table: table["kind"])
def test_of_every_strategy(
    strategy: dict[str, Any], folders: dict[str, Path], export_folder: Path, tmp_path: Path
) -> None:
    assert same(*(fitted(export_folder, data, tmp_path, strategy) for data in folders.values()))


@pytest.mark.parametrize("head", HEADS)
def test_of_every_head(head: str, folders: dict[str, Path], export_folder: Path, tmp_path: Path) -> None:
    found = [
        fitted(export_folder, data, tmp_path, {"kind": "frozen"}, head={"kind": head}) for data in folders.values()
    ]
    assert same(*found)


def registered(export: Path, data: Path, out: Path) -> tuple[RowConfig, str, Any]:
    """Row, hash of the weights, and measures and calibration of what would be registered, of several rows."""
    rows = [RowConfig(strategy="frozen", modalities=names) for names in (("a",), ("b",), ("c",))]
    comparison = compared(export, data, out, rows, optim={"frozen_epochs": 2, "lr": 0.05})
    with Tracker(out, "none", "none", {}, enabled=False) as tracker:
        for row in comparison.recipe.rows:
            comparison._row(row, tracker)
    best = comparison.champion.best
    assert best is not None
    return best.row, digest(best.predictor), measured(best, comparison.recipe, comparison._rows(), comparison.task)


def test_of_what_is_registered(
    folders: dict[str, Path], export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row, its weights and its calibration; the wrong variant takes the row that is best on the test part."""
    right = [registered(export_folder, data, tmp_path / name) for name, data in folders.items()]
    assert right[0] == right[1]
    fit = RowFitter.fit

    def wrong(self: RowFitter, row: RowConfig, seed: int) -> Outcome:
        found = fit(self, row, seed)
        return replace(found, validation=evaluate(self.task, found.predictions, found.targets))

    monkeypatch.setattr(RowFitter, "fit", wrong)
    by_test = [registered(export_folder, data, tmp_path / name) for name, data in folders.items()]
    assert by_test[0][0] != by_test[1][0]


def test_an_epoch_that_is_chosen_on_the_test_part_is_seen(
    folders: dict[str, Path], export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong variant, as published."""
    batches = RowFitter._batches

    def wrong(self: RowFitter, *args: Any) -> Any:
        found, features = batches(self, *args)
        return {**found, "val": found["test"]}, features

    monkeypatch.setattr(RowFitter, "_batches", wrong)
    assert not same(*(fitted(export_folder, data, tmp_path, {"kind": "frozen"}) for data in folders.values()))


def test_targets_that_are_scaled_by_all_labels_are_seen(
    folders: dict[str, Path], export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong variant of the published normaliser, which is fitted to more than the training part."""
    from finetune.heads.scaling import Standardiser

    right, seen = Standardiser.fit, []

    def wrong(self: Standardiser, targets: torch.Tensor) -> None:
        right(self, torch.cat([targets, *seen]))

    monkeypatch.setattr(Standardiser, "fit", wrong)
    found = []
    for data in folders.values():
        dataset = Dataset(data)
        rows = [dataset[int(i)].labels.get("gap_ev", float("nan")) for i in dataset.positions(SPLIT, "test")]
        seen[:] = [torch.tensor(rows)[:, None]]
        found.append(fitted(export_folder, data, tmp_path, {"kind": "frozen"}))
    assert not same(*found)
