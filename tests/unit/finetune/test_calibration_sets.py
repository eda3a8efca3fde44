"""Sets of classes: what they promise, what breaks the promise, and how they reach a user."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from finetune.calibration import Calibration
from finetune.predicted import Predictions
from finetune.prediction import Prediction
from finetune.streaming import predict_stream
from shards.errors import DataError
from shards.reader import Dataset
from tests.unit.finetune.test_predicted import INFO
from tests.unit.finetune.test_streaming import written

LEVEL = 0.9


def several(probabilities: Tensor) -> Prediction:
    return Prediction(probabilities.argmax(1, keepdim=True).float(), probabilities=probabilities)


def covered(calibration: Calibration, prediction: Prediction, classes: Tensor) -> Tensor:
    """Which classes (N, T) are in their sets."""
    sets = calibration.apply(prediction).sets
    assert sets is not None and sets.dtype == torch.bool
    return sets.gather(2, classes.long()[:, :, None])[:, :, 0]


def within(count: int, of: int) -> bool:
    """Whether a number of covered rows is what 90 % of independent rows give, all but once in a thousand."""
    low, high = binom.interval(0.999, of, LEVEL)
    return bool(low <= count <= high)


def test_the_finite_sample_correction_keeps_the_promise_with_few_rows() -> None:
    # 2000 targets of 19 rows each: for k = ceil(20 * 0.9) the next row is covered with a probability of 18/20
    draw = torch.Generator().manual_seed(0)
    chance = (torch.randn(20, 2000, generator=draw) * 2).sigmoid()
    truth = torch.bernoulli(chance, generator=draw)
    said = Prediction(chance.logit().mul(2).sigmoid())
    held, new = said.map(lambda rows: rows[:19]), said.map(lambda rows: rows[19:])
    calibration = Calibration.fit(held, truth[:19], task="classification", level=LEVEL)
    assert calibration.score == "probability" and set(calibration.rows) == {19}
    assert within(int(covered(calibration, new, truth[19:]).sum()), 2000)
    # the wrong variant: the plain quantile of the 19 scores
    unlikely = torch.where(truth == 1, 1 - said.value, said.value)
    naive = calibration.model_copy(update={"quantile": tuple(torch.quantile(unlikely[:19], LEVEL, dim=0).tolist())})
    assert not within(int(covered(naive, new, truth[19:]).sum()), 2000)


def rows_of_three(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(rows, 25))
    scores = 1.5 * x[:, :3] + rng.gumbel(size=(rows, 3))
    return x, scores.argmax(1)


@pytest.fixture(scope="module")
def predicted() -> Callable[[np.ndarray], Prediction]:
    """An overfitted classifier: 60 rows of 25 features."""
    model = LogisticRegression(C=10, max_iter=1000).fit(*rows_of_three(60, np.random.default_rng(0)))
    return lambda x: several(torch.from_numpy(model.predict_proba(x)).float())


def test_coverage_holds_on_rows_that_the_predictor_has_not_seen(predicted: Callable[[np.ndarray], Prediction]) -> None:
    rng = np.random.default_rng(1)
    (x, y), (new, truth) = rows_of_three(20_000, rng), rows_of_three(2000, rng)
    classes = torch.from_numpy(truth)[:, None].float()
    calibration = Calibration.fit(predicted(x), torch.from_numpy(y)[:, None].float(), level=LEVEL)
    assert within(int(covered(calibration, predicted(new), classes).sum()), 2000)
    # the wrong variant: calibrated on the rows that it was trained on
    seen, known = rows_of_three(60, np.random.default_rng(0))
    wrong = Calibration.fit(predicted(seen), torch.from_numpy(known)[:, None].float(), level=LEVEL)
    assert float(covered(wrong, predicted(new), classes).float().mean()) < 0.8
    # a temperature, which changes no order, changes no set
    cooled = calibration.apply(predicted(new))
    assert cooled.probabilities is not None and calibration.temperature[0] > 1.2
    again = calibration.model_copy(update={"temperature": (1.0,)}).apply(predicted(new))
    assert cooled.sets is not None and again.sets is not None and torch.equal(cooled.sets, again.sets)


def test_sets_are_those_of_mapie() -> None:
    from mapie.classification import SplitConformalClassifier

    rng = np.random.default_rng(3)
    model = LogisticRegression(max_iter=1000).fit(*rows_of_three(200, rng))
    (x, y), (new, _) = rows_of_three(67, rng), rows_of_three(300, rng)
    theirs = SplitConformalClassifier(model, confidence_level=[0.6, LEVEL], conformity_score="lac", prefit=True)
    _, expected = theirs.conformalize(x, y).predict_set(new)
    for i, level in enumerate((0.6, LEVEL)):
        prediction = several(torch.from_numpy(model.predict_proba(x)))
        calibration = Calibration.fit(prediction, torch.from_numpy(y)[:, None].double(), level=level)
        ours = calibration.apply(several(torch.from_numpy(model.predict_proba(new)))).sets
        assert ours is not None
        np.testing.assert_array_equal(ours[:, 0].numpy(), expected[:, :, i])
    # some of the smaller sets are empty
    assert (expected[:, :, 0].sum(1) == 0).any()


def test_too_few_rows_put_every_class_in_the_set_and_unknown_ones_count_for_nothing() -> None:
    prediction = Prediction(torch.full((9, 2), 0.9))
    truth = torch.ones(9, 2)
    truth[8, 1] = float("nan")
    calibration = Calibration.fit(prediction, truth, task="classification")
    assert calibration.rows == (9, 8) and calibration.quantile[1] is None
    sets = calibration.apply(prediction).sets
    assert sets is not None and sets[0].tolist() == [[False, True], [True, True]]
    text = json.dumps(calibration.model_dump(mode="json"), allow_nan=False)
    assert Calibration.model_validate(json.loads(text)) == calibration
    # what was stored before there were sets has none
    old = {"task": "classification", "score": "temperature", "rows": [9, 9], "temperature": [1.0, 1.0]}
    assert Calibration.model_validate(old).apply(prediction).sets is None


def test_a_class_that_the_predictor_does_not_know_is_refused() -> None:
    with pytest.raises(DataError, match="hold 3"):
        Calibration.fit(several(torch.full((4, 3), 1 / 3)), torch.tensor([[0.0], [1.0], [3.0], [2.0]]))


def test_a_user_reads_the_classes_of_the_set() -> None:
    info = replace(INFO, targets=("crystal_system",), task="multiclass")
    shares = torch.tensor([[0.5, 0.45, 0.05], [0.4, 0.3, 0.3]])
    sets = torch.tensor([[[True, True, False]], [[False, False, False]]])
    found = Predictions(["a", "b"], info, several(shares)._replace(sets=sets))
    assert found[0].classes == (0, 1) and str(found[0]) == "0 {0, 1}"
    # an empty set is something else than none
    assert found[1].classes == () and found[1].as_dict()["classes"] == () and str(found[1]) == "0 {}"
    assert found.to_frame()["crystal_system_in_set_1"].tolist() == [True, False]
    assert found[1:][0].classes == ()
    bare = Predictions(["a"], info, several(shares[:1]))
    assert bare[0].classes is None and "classes" not in bare[0].as_dict() and str(bare[0]) == "0"


def test_a_stream_writes_the_sets_of_a_stored_predictor(export_folder: Path, tmp_path: Path, toy: Dataset) -> None:
    calibration = Calibration(
        task="classification", score="probability", rows=(99,), quantile=(0.51,), temperature=(2.0,)
    ).model_dump(mode="json")
    head = {"kind": "classification"}
    model = written(export_folder, tmp_path / "predictor", head=head, task="classification", calibration=calibration)
    streamed = predict_stream(model, toy, tmp_path / "out", part_size=25)
    table = pd.read_parquet(tmp_path / "out")
    assert streamed.rows == len(table) == len(toy)
    name = model.info.targets[0]
    said = model.estimate(list(toy), calibrated=False).value[:, 0].numpy()
    np.testing.assert_array_equal(table[f"{name}_in_set_1"], 1 - said.astype(np.float64) <= 0.51)
    np.testing.assert_array_equal(table[f"{name}_in_set_0"], said.astype(np.float64) <= 0.51)
