from __future__ import annotations

import pytest
import torch

from finetune.heads.base import HEADS, Head
from shards.errors import ConfigError


def head(kind: str, **options: object) -> Head:
    torch.manual_seed(0)
    return HEADS.get(kind)(HEADS.options({"kind": kind, **options}), 4, ("gap_ev",))


def test_regression_predicts_in_the_targets_unit() -> None:
    regression = head("regression", layers=0)
    targets = torch.tensor([[100.0], [102.0], [104.0]])
    regression.fit(targets)
    assert torch.allclose(regression.predict(torch.tensor([[0.0], [1.0]])).value, torch.tensor([[102.0], [104.0]]))


@pytest.mark.parametrize("kind", HEADS.kinds())
def test_rows_without_a_label_weigh_nothing(kind: str) -> None:
    predictor, features = head(kind), torch.randn(5, 4)
    predictor.eval()
    targets = torch.tensor([1.0, float("nan"), 0.0, float("nan"), 1.0])[:, None]
    known = ~targets[:, 0].isnan()
    whole = predictor.loss(predictor(features), targets)
    assert torch.allclose(whole, predictor.loss(predictor(features[known]), targets[known]))


@pytest.mark.parametrize("kind", HEADS.kinds())
def test_a_batch_without_labels_gives_zero_with_a_graph(kind: str) -> None:
    predictor = head(kind)
    loss = predictor.loss(predictor(torch.randn(3, 4)), torch.full((3, 1), float("nan")))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in predictor.parameters())


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
