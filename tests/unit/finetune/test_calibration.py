from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.calibration import Calibration, conformal_quantile
from finetune.prediction import Prediction
from shards.errors import ConfigError


def heteroscedastic(rows: int, seed: int, *, too_small: float = 2.0) -> tuple[Prediction, Tensor]:
    """Errors of known standard deviation, of which the predictor says too small a one."""
    draw = torch.Generator().manual_seed(seed)
    std = 0.2 + torch.rand(rows, 2, generator=draw)
    truth = torch.randn(rows, 2, generator=draw) * 3
    value = truth + std * torch.randn(rows, 2, generator=draw)
    return Prediction(value, std=std / too_small), truth


def coverage(prediction: Prediction, truth: Tensor) -> float:
    assert prediction.lower is not None and prediction.upper is not None
    return float(((truth >= prediction.lower) & (truth <= prediction.upper)).float().mean())


def within_one_std(prediction: Prediction, truth: Tensor) -> float:
    assert prediction.std is not None
    return float(((truth - prediction.value).abs() <= prediction.std).float().mean())


def test_one_factor_repairs_standard_deviations_that_are_half_the_true_ones() -> None:
    validation, test = heteroscedastic(20_000, 0), heteroscedastic(20_000, 1)
    calibration = Calibration.fit(*validation)
    assert calibration.factor == pytest.approx((2.0, 2.0), abs=0.03)
    assert within_one_std(*test) == pytest.approx(0.383, abs=0.01)
    assert within_one_std(calibration.apply(test[0]), test[1]) == pytest.approx(0.683, abs=0.01)
    # the wrong variant: the mean of |z| instead of the root of the mean of its square
    assert validation[0].std is not None
    wrong = float(((validation[1] - validation[0].value).abs() / validation[0].std).mean())
    assert wrong < 1.7


@pytest.mark.parametrize("form", ["absolute", "normalised", "quantile"])
def test_intervals_hold_the_truth_as_often_as_they_promise(form: str) -> None:
    def seen(seed: int) -> tuple[Prediction, Tensor]:
        prediction, truth = heteroscedastic(4000, seed)
        assert prediction.std is not None
        if form == "absolute":
            return Prediction(prediction.value), truth
        if form == "quantile":
            half = prediction.std * 0.3
            return Prediction(prediction.value, lower=prediction.value - half, upper=prediction.value + half), truth
        return prediction, truth

    for level in (0.5, 0.9):
        calibration = Calibration.fit(*seen(0), level=level)
        assert calibration.score == form
        test, truth = seen(1)
        assert coverage(calibration.apply(test), truth) == pytest.approx(level, abs=0.02)
    # under shift it is not promised: the same intervals about predictions with a bias hold the truth less often
    biased = test._replace(**{n: v + 1.0 for n, v in test._asdict().items() if v is not None and n != "std"})
    assert coverage(calibration.apply(biased), truth) < 0.85


def test_the_finite_sample_correction_is_what_keeps_the_promise_with_few_rows() -> None:
    draw = torch.Generator().manual_seed(0)
    held, naive = [], []
    for _ in range(3000):
        scores, new = torch.rand(19, generator=draw), torch.rand(1, generator=draw)
        quantile = conformal_quantile(scores, 0.9)
        assert quantile is not None
        held.append(bool(new <= quantile))
        naive.append(bool(new <= torch.quantile(scores, 0.9)))
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)
    assert np.mean(naive) < 0.88


def test_intervals_are_those_of_mapie() -> None:
    from mapie.regression import SplitConformalRegressor
    from sklearn.linear_model import LinearRegression

    draw = np.random.default_rng(0)
    x = draw.normal(size=(150, 1))
    y = 2 * x[:, 0] + draw.standard_t(3, 150)
    model = LinearRegression().fit(x[:50], y[:50])
    theirs = SplitConformalRegressor(model, confidence_level=0.9, prefit=True).conformalize(x[50:101], y[50:101])
    ends = theirs.predict_interval(x[101:])[1][:, :, 0]

    def predicted(rows: slice) -> Prediction:
        return Prediction(torch.from_numpy(model.predict(x[rows]))[:, None])

    calibration = Calibration.fit(predicted(slice(50, 101)), torch.from_numpy(y[50:101])[:, None])
    ours = calibration.apply(predicted(slice(101, None)))
    assert ours.lower is not None and ours.upper is not None
    np.testing.assert_allclose(torch.cat([ours.lower, ours.upper], 1).numpy(), ends)


def test_too_few_rows_give_an_infinite_interval_and_unknown_targets_count_for_nothing() -> None:
    prediction, truth = heteroscedastic(9, 0)
    truth[8, 1] = float("nan")
    calibration = Calibration.fit(prediction, truth, level=0.9)
    assert calibration.rows == (9, 8)
    # ceil(10 * .9) = 9 of 9 rows, ceil(9 * .9) = 9 of 8
    assert calibration.quantile[0] is not None and calibration.quantile[1] is None
    applied = calibration.apply(prediction)
    assert applied.lower is not None and applied.upper is not None
    assert applied.lower[:, 0].isfinite().all() and applied.lower[:, 1].eq(-torch.inf).all()
    assert Calibration.fit(prediction, torch.full_like(truth, float("nan"))).factor == (1.0, 1.0)


def test_it_survives_json() -> None:
    prediction, truth = heteroscedastic(9, 0)
    truth[0, 1] = float("nan")
    calibration = Calibration.fit(prediction, truth)
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration
    text = json.dumps(calibration.model_dump(mode="json"), allow_nan=False)
    assert Calibration.model_validate(json.loads(text)) == calibration


def test_a_standard_deviation_of_zero_gives_no_interval_of_zero_width() -> None:
    prediction, truth = heteroscedastic(100, 0)
    calibration = Calibration.fit(prediction, truth)
    sure = Prediction(torch.zeros(1, 2), std=torch.zeros(1, 2))
    applied = calibration.apply(sure)
    assert applied.upper is not None and (applied.upper > 0.1).all()
    # where the validation rows have some already, errors are ranked as they are
    assert prediction.std is not None
    assert Calibration.fit(prediction._replace(std=prediction.std.clone().fill_(0)), truth).score == "absolute"


def test_temperature_of_overconfident_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(8000, 3, generator=draw) * 2
    classes = torch.multinomial(logits.softmax(1), 1, generator=draw).float()
    loud = (logits * 3).softmax(1)
    prediction = Prediction(loud.argmax(1, keepdim=True).float(), probabilities=loud)
    calibration = Calibration.fit(prediction, classes)
    assert calibration.temperature == pytest.approx((3.0,), rel=0.1)
    applied = calibration.apply(prediction)
    assert applied.probabilities is not None
    assert (applied.probabilities.argmax(1) == loud.argmax(1)).all()
    assert (applied.probabilities - logits.softmax(1)).abs().max() < 0.05

    logit = torch.randn(8000, 1, generator=draw) * 2
    labels = torch.bernoulli(logit.sigmoid(), generator=draw)
    binary = Prediction((logit * 3).sigmoid())
    calibration = Calibration.fit(binary, labels, task="classification")
    assert calibration.temperature == pytest.approx((3.0,), rel=0.1)
    assert (calibration.apply(binary).value - logit.sigmoid()).abs().max() < 0.05


def test_it_refuses_a_predictor_of_another_form() -> None:
    prediction, truth = heteroscedastic(50, 0)
    calibration = Calibration.fit(prediction, truth)
    with pytest.raises(ConfigError, match="has none"):
        calibration.apply(Prediction(prediction.value))
    with pytest.raises(ConfigError, match="2 targets"):
        calibration.apply(Prediction(prediction.value[:, :1], std=torch.ones(50, 1)))
