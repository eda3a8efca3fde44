"""Probes of frozen embeddings, and the crystal system that they are asked about."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.evaluations.base import Subject
from finetune.evaluations.probes import Probes, balanced_accuracy
from finetune.evaluations.properties import classes_of, crystal_system
from finetune.loading import Foundation
from shards.errors import DataError
from shards.reader import Dataset
from shards.schema import Sample


@pytest.fixture
def subject(foundation: Foundation, linear_data: Dataset) -> Subject:
    return Subject(model=foundation, dataset=linear_data, split="chemical_system")


def rows(subject: Subject, **options: object) -> dict[tuple[str, str], dict[str, float]]:
    table = Probes(**options)(subject).tables["probes"]  # type: ignore[arg-type]
    return {(row["property"], row["probe"]): row for row in table}  # type: ignore[misc]


def test_crystal_systems_by_number_and_by_symbol() -> None:
    last = {"triclinic": 2, "monoclinic": 15, "orthorhombic": 74, "tetragonal": 142, "trigonal": 167, "hexagonal": 194}
    borders = {1: "triclinic", 230: "cubic"} | {number: system for system, number in last.items()}
    borders |= dict(zip([number + 1 for number in last.values()], [*list(last)[1:], "cubic"], strict=True))
    assert {number: crystal_system(number) for number in borders} == borders
    for wrong in (0, 231):
        with pytest.raises(DataError, match="no space group"):
            crystal_system(wrong)
    tags = [
        {"spacegroup": "Pm-3m"}, {"spacegroup": "P6_3/mmc"}, {"spacegroup": "R-3m"}, {"spacegroup": "C2/c"},
        {"spacegroup": "62"}, {"spacegroup_number": "1"}, {"crystal_system": "Cubic", "spacegroup": "P1"}, {},
        {"spacegroup": "unknown"},
    ]  # fmt: skip
    found = classes_of([Sample(id=str(i), tags=t) for i, t in enumerate(tags)], "crystal_system")
    assert found == ["cubic", "hexagonal", "trigonal", "monoclinic", "orthorhombic", "triclinic", "cubic", None, None]


def test_metals_by_label_and_by_gap() -> None:
    labels = [{"is_metal": 1.0, "band_gap_ev": 2.0}, {"band_gap_ev": 0.0}, {"band_gap_ev": 0.01}, {}]
    found = classes_of([Sample(id=str(i), labels=label) for i, label in enumerate(labels)], "metal")
    assert found == ["metal", "metal", "insulator", None]


def test_what_the_embedding_holds_is_found_and_what_it_does_not_is_not(subject: Subject) -> None:
    found = rows(subject, properties=("crystal_system", "coin"))
    for probe in ("linear", "knn"):
        held, coin = found["crystal_system", probe], found["coin", probe]
        assert held["balanced_accuracy"] > 0.85 and held["n"] == 100 and held["n_train"] == 200
        assert abs(coin["balanced_accuracy"] - 0.5) < 0.15
        assert held["majority_balanced_accuracy"] == 0.5
    # the wrong variant, tested on what it was fitted on, finds the coin
    leaked = rows(Subject(**{**vars(subject), "part": "train"}), properties=("coin",), neighbours=(1,))
    assert leaked["coin", "knn"]["balanced_accuracy"] == 1.0


def test_the_choice_is_made_on_val(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of neighbours is that which is best on val, computed here by hand."""
    from sklearn.neighbors import KNeighborsClassifier

    from finetune.evaluations.embedding import vectors_of

    parts = {part: vectors_of(subject, part) for part in ("train", "val")}
    (train, known, name), (val, truth, _) = parts["train"], parts["val"]
    assert name == "a"
    y, z = [s.tags["coin"] for s in known], [s.tags["coin"] for s in truth]
    scores = {
        k: balanced_accuracy(z, KNeighborsClassifier(k, metric="cosine").fit(train, y).predict(val)) for k in (1, 5, 20)
    }
    found = rows(subject, properties=("coin",), neighbours=(1, 5, 20))
    assert found["coin", "knn"]["chosen"] == max(scores, key=lambda k: scores[k])
    assert len(set(scores.values())) > 1


def test_balanced_accuracy_is_the_mean_recall() -> None:
    assert balanced_accuracy(list("aaab"), list("aaaa")) == 0.5
    assert balanced_accuracy(list("aab"), np.array(list("acb"))) == 0.75


def test_what_nothing_is_known_of_is_refused(subject: Subject) -> None:
    with pytest.raises(DataError, match="none of"):
        Probes(properties=("colour",))(subject)
