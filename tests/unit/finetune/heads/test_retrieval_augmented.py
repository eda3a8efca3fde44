from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.heads.base import Head
from shards.errors import ConfigError
from tests.unit.finetune.heads.training import build, train


def families(count: int, number: int = 300) -> tuple[Tensor, Tensor]:
    """Rows of some families, at random points and with labels that are no function of them: only a look-up knows."""
    generator = torch.Generator().manual_seed(0)
    points, labels = torch.randn(number, 8, generator=generator), torch.randn(number, 1, generator=generator)
    member = torch.arange(count) % number
    features = points[member] + 0.05 * torch.randn(count, 8, generator=generator)
    return features, labels[member] + 0.05 * torch.randn(count, 1, generator=generator)


def shuffle_labels(head: Head, inputs: tuple[Tensor, ...]) -> None:
    head.labels = head.labels[torch.randperm(len(head.labels))]


def error_of(head_kind: str, *, shuffled: bool = False) -> float:
    x, y = families(800)
    options = {"neighbours": 1} if head_kind == "retrieval_augmented" else {}
    head = build(head_kind, 8, hidden=8, dropout=0.0, **options)
    head.fit(y[:600], x[:600])
    if shuffled:
        # anew each time: labels that stay at the wrong rows would still tell the families apart
        head.register_forward_pre_hook(shuffle_labels)
    train(head, x[:600], y[:600], steps=200, fit=False)
    return (head.predict(head(x[600:])).value - y[600:]).abs().mean().item()


def test_informative_neighbours_help_and_shuffled_ones_do_not() -> None:
    plain, augmented, shuffled = (
        error_of("regression"),
        error_of("retrieval_augmented"),
        error_of("retrieval_augmented", shuffled=True),
    )
    assert augmented < 0.6 * plain
    assert shuffled > 0.9 * plain


def test_a_row_is_not_its_own_neighbour_in_training() -> None:
    head, x = build("retrieval_augmented", 4, neighbours=3), torch.randn(20, 4)
    x[5] = x[6]
    head.fit(torch.arange(20.0)[:, None], x)
    index, real = head.train().neighbours(x)
    assert real.all() and not (index == torch.arange(20)[:, None]).any()
    assert not (index[[5, 6]] == 5).any() and not (index[[5, 6]] == 6).any()
    index, _ = head.eval().neighbours(x)
    assert torch.equal(index[:5, 0], torch.arange(5))
    # a varied feature finds its row all the same
    index, _ = head.train().neighbours(x[:5] + 1e-3)
    assert not (index == torch.arange(5)[:, None]).any()


def test_its_own_label_would_be_copied() -> None:
    """Labels that nothing explains: a head that sees its own row fits them in training, and is no better on others."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 4, generator=generator), torch.randn(200, 1, generator=generator)
    errors = []
    for own in (False, True):
        head = build("retrieval_augmented", 4, hidden=8, neighbours=1, dropout=0.0)
        if own:
            head.train = lambda mode=True, head=head: torch.nn.Module.train(head, False)
        train(head, x, y, steps=150)
        torch.nn.Module.train(head, not own)
        errors.append((head.predict(head(x)).value - y).abs().mean().item())
    assert errors[1] < 0.2 and errors[0] > 0.5


def test_nothing_of_its_group_is_found_in_training_and_anything_in_use() -> None:
    head, x = build("retrieval_augmented", 4, neighbours=2), torch.randn(6, 4)
    head.grouped(["b", "a", "b", "a", "c", "b"])
    y = torch.arange(6.0)[:, None]
    y[3] = float("nan")
    head.fit(y, x)
    # without the row of unknown label: b, a, b, c, b
    index, real = head.train().neighbours(x[[0, 4]])
    assert {tuple(sorted(row)) for row in index.tolist()} <= {(1, 3), (0, 1), (0, 2), (0, 4), (1, 2), (1, 4), (2, 4)}
    assert set(index[0].tolist()) == {1, 3} and real.all() and 3 not in index[1].tolist()
    assert 0 in head.eval().neighbours(x[:1])[0]


def test_families_that_are_new_in_use_are_not_trusted_in_training() -> None:
    """Labels of a family say nothing of another: who learns from relatives trusts neighbours that know nothing."""
    x, y = families(4000, 2000)
    family = torch.arange(4000) % 2000
    train_rows, new = family < 1500, family >= 1500
    errors = {}
    for name in ("plain", "grouped", "rows"):
        kind, options = ("regression", {}) if name == "plain" else ("retrieval_augmented", {"neighbours": 1})
        head = build(kind, 8, hidden=8, dropout=0.0, **options)
        if name == "grouped":
            head.grouped([str(int(number)) for number in family[train_rows]])
        train(head, x[train_rows], y[train_rows], steps=200)
        errors[name] = (head.predict(head(x[new])).value - y[new]).square().mean().item()
    assert errors["grouped"] < 1.1 * errors["plain"] < 1.2 * errors["plain"] < errors["rows"], errors


def test_few_rows_and_features_that_change() -> None:
    head = build("retrieval_augmented", 4, neighbours=8)
    head.fit(torch.tensor([[0.0], [1.0], [float("nan")]]), torch.randn(3, 4))
    assert len(head.memory) == 2
    assert head.train()(head.memory).isfinite().all() and head.eval()(torch.randn(5, 4)).isfinite().all()
    with pytest.raises(ConfigError, match="keeps training features"):
        head.fit(torch.randn(5, 1))
