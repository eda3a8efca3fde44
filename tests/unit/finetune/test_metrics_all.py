"""Every metric against what it must say of a case whose answer is known (and a wrong formula for it does not)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_cohen_kappa

from finetune.metrics.affinity import affinity, concordance_index
from finetune.metrics.classification import classification, label_macro, multiclass
from finetune.metrics.ranking import precision_at_k, recall_at_k
from finetune.metrics.regression import regression
from finetune.metrics.sequence import levenshtein_similarity, sequence


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_shifted_prediction(rng: np.random.Generator) -> None:
    y = rng.normal(size=4000)
    y = 7 + 0.917 * (y - y.mean()) / y.std()
    found, ordered = regression(y + 3, y), affinity(y + 3, y)
    assert found["r2"] == pytest.approx(-9.7, abs=0.01)
    assert found["pearson"] == pytest.approx(1) and found["spearman"] == pytest.approx(1)
    assert found["mae"] == pytest.approx(3) == found["max_error"] and found["mse"] == pytest.approx(9)
    assert ordered["ci"] == pytest.approx(1) and ordered["pearson2"] == pytest.approx(1)
    # two formulas that are called r2m, of the same prediction
    assert ordered["rm2"] == pytest.approx(0.70, abs=0.005)
    assert ordered["rm2_deepdta"] == pytest.approx(0.59, abs=0.005)
    # the wrong variant: R2 as the square of a correlation does not see the shift
    assert found["pearson"] ** 2 > found["r2"] + 10


def test_regression_edge_cases() -> None:
    found = regression(np.array([1.0, 1.0, 3.0]), np.array([0.0, 2.0, 4.0]))
    # a value of 0 has no relative error
    assert found["mape"] == pytest.approx((0.5 + 0.25) / 2)
    constant = regression(np.ones(3), np.ones(3))
    assert constant["mae"] == 0 and np.isnan([constant["r2"], constant["pearson"], constant["spearman"]]).all()
    assert np.isnan(regression(np.zeros(0), np.zeros(0))["mae"])


def test_concordance_by_all_pairs(rng: np.random.Generator) -> None:
    for _ in range(5):
        y, p = rng.integers(0, 6, 60).astype(float), rng.integers(0, 6, 60).astype(float)
        pairs = [(i, j) for i, j in combinations(range(60), 2) if y[i] != y[j]]
        points = [0.5 if p[i] == p[j] else float((p[i] > p[j]) == (y[i] > y[j])) for i, j in pairs]
        assert concordance_index(p, y) == pytest.approx(np.mean(points))
        # the wrong variant: ties are no half, but wrong
        assert concordance_index(p, y) - np.mean([point == 1.0 for point in points]) > 0.05
    assert concordance_index(np.full(60, 2.0), y) == 0.5
    assert concordance_index(-y, y) == 0 and np.isnan(concordance_index(p, np.ones(60)))


def test_a_constant_score_and_the_two_areas_under_precision_and_recall() -> None:
    truth = np.zeros(1224)
    truth[:434] = 1
    found = classification(np.full(1224, 0.5), truth)
    assert found["prevalence"] == pytest.approx(0.3546, abs=1e-4) and found["positives"] == 434
    assert found["average_precision"] == pytest.approx(found["prevalence"])
    assert found["auprc_trapezoid"] == pytest.approx(0.677, abs=0.001)
    assert found["auroc"] == 0.5


def test_a_constant_class_is_right_often_and_worth_nothing() -> None:
    truth = np.repeat([0.0, 1.0], [90, 10])
    found = classification(np.zeros(100), truth)
    assert found["accuracy"] == found["f1_micro"] == pytest.approx(0.9)
    assert found["kappa"] == 0 and found["mcc"] == 0 and found["balanced_accuracy"] == 0.5
    assert found["recall"] == 0 and found["precision"] == 0 and found["f1_macro"] == pytest.approx(0.9 / 1.9)
    assert multiclass(np.zeros(100), truth)["kappa"] == 0


def test_classification_agrees_with_torchmetrics(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 2, 300)
    probability = np.clip(0.3 * truth + rng.uniform(0, 0.7, 300), 0, 1)
    found = classification(probability, truth.astype(float))
    p, y = torch.from_numpy(probability), torch.from_numpy(truth)
    assert found["auroc"] == pytest.approx(float(binary_auroc(p, y)), abs=1e-5)
    assert found["average_precision"] == pytest.approx(float(binary_average_precision(p, y)), abs=1e-5)
    assert found["kappa"] == pytest.approx(float(binary_cohen_kappa(p, y)), abs=1e-5)
    best = max(f1_score(truth, probability >= threshold) for threshold in probability)
    assert found["fmax"] == pytest.approx(best) and found["fmax"] >= found["f1"]


def test_classes_with_probabilities() -> None:
    truth = np.array([0.0, 0.0, 1.0, 1.0])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.7, 0.2, 0.1]])
    found = multiclass(probabilities.argmax(1).astype(float), truth, probabilities)
    # the third class, which no row has, counts for nothing
    assert found["auroc"] == pytest.approx((3 / 4 + 3 / 4) / 2)
    assert found["accuracy"] == 0.75 and found["recall_macro"] == 0.75 and found["classes"] == 2


def test_a_mean_over_labels_comes_with_the_positives_of_each() -> None:
    nan = np.nan
    truth = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, nan], [1.0, 0.0, 0.0]])
    probability = np.array([[0.9, 0.1, 0.2], [0.1, 0.1, 0.9], [0.8, 0.1, 0.7]])
    rows, mean = label_macro(probability, truth, ["a", "b", "c"])
    assert [(row["label"], row["positives"], row["rows"]) for row in rows] == [("a", 2, 3), ("b", 0, 3), ("c", 1, 2)]
    # b has no positives: it has no AUROC, and the mean is that of a and c
    assert np.isnan(rows[1]["auroc"]) and mean["auroc"] == pytest.approx((1.0 + 0.0) / 2)


def test_the_first_k_do_not_depend_on_the_order_of_the_rows(rng: np.random.Generator) -> None:
    scores, relevant = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, True])
    assert precision_at_k(scores, relevant, 1) == 1 and recall_at_k(scores, relevant, 1) == pytest.approx(1 / 3)
    assert precision_at_k(scores, relevant, 2) == pytest.approx(1.5 / 2)
    assert precision_at_k(scores, relevant, 9) == 0.75 and recall_at_k(scores, relevant, 9) == 1
    # a constant score that meets sorted rows finds as many as chance; in the order of the rows it would find all
    first = np.arange(100) < 10
    assert precision_at_k(np.zeros(100), first, 10) == pytest.approx(0.1)
    assert first[np.argsort(-np.zeros(100), kind="stable")[:10]].mean() == 1
    assert np.isnan(recall_at_k(scores, np.zeros(4, bool), 2))


def test_sequences_are_compared_by_characters() -> None:
    text = "ADD water ; STIR for 5 min at 25 degree"
    text = text[:40].ljust(40, "x")
    assert levenshtein_similarity([text[:-1] + "!"], [text]) == pytest.approx([0.975])
    # the wrong variant counts words
    words = text.split()
    changed = [*words[:-1], words[-1][:-1] + "!"]
    assert 1 - sum(a != b for a, b in zip(words, changed, strict=True)) / len(words) < 0.95
    truth = ["a b c d e", "f g h i j"]
    found = sequence(["a b c d e", "f g h i k"], truth)
    assert found["exact"] == 0.5 and found["levenshtein"] == pytest.approx((1 + 8 / 9) / 2)
    assert found["similar_100"] == 0.5 and found["similar_90"] == 0.5 and found["similar_75"] == 1
    assert 0 < found["bleu"] < 1 and sequence(truth, truth)["bleu"] == pytest.approx(1)
    assert levenshtein_similarity([""], [""]) == [1]
