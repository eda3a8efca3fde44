from __future__ import annotations

import pytest
import torch

from finetune.heads.base import HEADS, Head
from shards.errors import ConfigError

OPTIONS: dict[str, dict[str, object]] = {"multiclass": {"classes": 3}}
TARGETS = {"tensor": 21, "spectrum": 6, "conditional_posterior": 3}


def head(kind: str, targets: int = 1, **options: object) -> Head:
    torch.manual_seed(0)
    names = tuple(f"t{i}_ev" for i in range(targets))
    return HEADS.get(kind)(HEADS.options({"kind": kind, **OPTIONS.get(kind, {}), **options}), 4, names)


def rows(kind: str, count: int) -> torch.Tensor:
    """Features of ``count`` rows, as the head reads them."""
    return torch.randn(count, 2, 4) if kind.startswith("pair") else torch.randn(count, 4)


def fitted(kind: str) -> Head:
    """A head with random weights, fitted to 8 training rows."""
    made = head(kind, TARGETS.get(kind, 1))
    labels = torch.arange(8.0) % (2 if made.task != "regression" else 8)
    made.fit(labels[:, None] * torch.ones(len(made.targets)), rows(kind, 8))
    return made


def test_regression_predicts_in_the_targets_unit() -> None:
    regression = head("regression", layers=0)
    targets = torch.tensor([[100.0], [102.0], [104.0]])
    regression.fit(targets)
    assert torch.allclose(regression.predict(torch.tensor([[0.0], [1.0]])).value, torch.tensor([[102.0], [104.0]]))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", HEADS.kinds())
def test_rows_without_a_label_weigh_nothing(kind: str, training: bool) -> None:
    predictor, features = fitted(kind).train(training), rows(kind, 5)
    for module in predictor.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    targets = torch.tensor([1.0, float("nan"), 0.0, float("nan"), 1.0])[:, None].repeat(1, len(predictor.targets))
    known = ~targets[:, 0].isnan()
    whole = predictor.loss(predictor(features), targets)
    assert torch.allclose(whole, predictor.loss(predictor(features[known]), targets[known]))
    wrong = predictor.loss(predictor(features), targets.nan_to_num())
    assert not torch.allclose(whole, wrong), "an unknown label taken for 0 must show"


@pytest.mark.parametrize("kind", HEADS.kinds())
def test_a_batch_without_labels_gives_zero_with_a_graph(kind: str) -> None:
    predictor = fitted(kind)
    loss = predictor.loss(predictor(rows(kind, 3)), torch.full((3, len(predictor.targets)), float("nan")))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in predictor.parameters())


@pytest.mark.parametrize("kind", HEADS.kinds())
def test_rows_do_not_depend_on_their_batch(kind: str) -> None:
    predictor, features = fitted(kind).eval(), rows(kind, 5)
    whole = predictor.predict(predictor(features))
    assert whole.value.shape == (5, len(predictor.targets))
    for index in range(5):
        alone = predictor.predict(predictor(features[index : index + 1]))
        for part, other in zip(whole, alone, strict=True):
            assert (part is None) == (other is None)
            if part is not None and other is not None:
                assert torch.allclose(part[index], other[0], atol=1e-5)


@pytest.mark.parametrize("kind", HEADS.kinds())
def test_what_is_fitted_travels_with_the_weights(kind: str) -> None:
    predictor, features = fitted(kind).eval(), rows(kind, 5)
    other = head(kind, TARGETS.get(kind, 1)).eval()
    other.load_state_dict({name: value.clone() for name, value in predictor.state_dict().items()})
    assert torch.equal(predictor.predict(predictor(features)).value, other.predict(other(features)).value)


@pytest.mark.parametrize("kind", HEADS.kinds())
def test_no_rows_give_no_predictions(kind: str) -> None:
    predictor = fitted(kind).eval()
    assert predictor.predict(predictor(rows(kind, 0))).value.shape == (0, len(predictor.targets))


def test_the_loss_is_of_standardised_targets() -> None:
    """Without standardisation, a target in meV would have a loss a million times that of one in eV."""
    losses = []
    for unit in (1.0, 1000.0):
        regression = head("regression", loss="mse")
        targets = torch.tensor([[1.0], [2.0], [4.0]]) * unit
        regression.fit(targets)
        losses.append(regression.loss(torch.zeros(3, 1), targets))
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)


def test_probabilities_are_between_0_and_1() -> None:
    classifier = head("classification")
    values = classifier.predict(classifier(10 * torch.randn(50, 4))).value
    assert ((values >= 0) & (values <= 1)).all()


def test_an_unknown_option_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        head("regression", hiden=3)
