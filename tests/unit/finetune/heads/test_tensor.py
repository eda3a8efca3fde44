from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.heads.symmetry import PAIRS, mandel_rotation, mandel_weights, point_group, rotation, symmetrise
from shards.errors import ConfigError
from tests.unit.finetune.heads.training import build, train, wide

INDEPENDENT = {
    "432": 3,
    "23": 3,
    "622": 5,
    "6": 5,
    "32": 6,
    "3": 7,
    "422": 6,
    "4": 7,
    "222": 9,
    "2": 13,
    "1": 21,
}
ORDER = {"1": 1, "2": 2, "222": 4, "4": 4, "422": 8, "3": 3, "32": 6, "6": 6, "622": 12, "23": 12, "432": 24}
SECOND_RANK = {"432": 1, "622": 2, "422": 2, "32": 2, "222": 3, "2": 4, "1": 6}
UPPER = tuple(torch.triu_indices(6, 6))


def any_rotation() -> Tensor:
    return rotation((0.3, -0.7, 0.5), 1.1)


def stiffnesses(count: int) -> Tensor:
    """Positive definite 6 x 6 matrices (count, 6, 6), Voigt's, in GPa."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(count, 6, 6, generator=generator)
    return 50 * (factor @ factor.mT) / 6 + 20 * torch.eye(6)


def turned(voigt: Tensor) -> Tensor:
    """The same tensors (count, 6, 6) of a crystal that lies otherwise."""
    weights, q = mandel_weights(4), mandel_rotation(any_rotation()[None])[0].float()
    return q @ (voigt * weights) @ q.T / weights


def test_a_rotation_of_mandels_form_is_that_of_the_tensor() -> None:
    full, r = torch.randn(3, 3, dtype=torch.float64), any_rotation()
    full = full + full.T
    vector = lambda t: torch.stack([t[i, j] for i, j in PAIRS]) * mandel_weights(2)  # noqa: E731
    q = mandel_rotation(r[None])[0]
    assert torch.allclose(q @ vector(full), vector(r @ full @ r.T), atol=1e-6)
    assert torch.allclose(q @ q.T, torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_crystal_class_leaves_as_many_constants_as_the_textbook_says(name: str) -> None:
    """Nye, Physical Properties of Crystals, table 9; half of a group is no group, and leaves others."""
    group = point_group(name)  # type: ignore[arg-type]
    assert len(group) == ORDER[name]
    basis = torch.zeros(21, 6, 6, dtype=torch.float64)
    basis[torch.arange(21), UPPER[0], UPPER[1]] = 1
    basis = basis + basis.mT
    projected = symmetrise(basis, group)
    assert torch.linalg.matrix_rank(projected.flatten(1), atol=1e-8) == INDEPENDENT[name]
    assert torch.allclose(symmetrise(projected, group), projected, atol=1e-9)
    q = mandel_rotation(group)[:, None]
    assert torch.allclose(q @ projected @ q.mT, projected.expand(len(group), -1, -1, -1), atol=1e-9)
    if name in SECOND_RANK:
        second = symmetrise(torch.eye(6, dtype=torch.float64), group, rank=2)
        assert torch.linalg.matrix_rank(second, atol=1e-8) == SECOND_RANK[name]


def test_a_cubic_tensor_has_the_cubic_form() -> None:
    cubic = symmetrise(stiffnesses(1)[0] * mandel_weights(4), point_group("432")) / mandel_weights(4)
    c11, c12, c44 = cubic[0, 0], cubic[0, 1], cubic[3, 3]
    expected = torch.diag(torch.stack([c11 - c12] * 3 + [c44] * 3))
    expected[:3, :3] += c12
    assert torch.allclose(cubic, expected, atol=1e-3)


@pytest.mark.parametrize("norm", ["mandel", "voigt"])
def test_only_mandels_norm_does_not_depend_on_how_the_crystal_lies(norm: str) -> None:
    truth, guess = stiffnesses(8), stiffnesses(16)[8:]
    head = build("tensor", 4, 21, norm=norm)
    losses = []
    for a, b in ((truth, guess), (turned(truth), turned(guess))):
        losses.append(head.loss(head.components(b), head.components(a)))
    assert torch.allclose(*losses, rtol=1e-4) == (norm == "mandel")
    if norm == "mandel":
        # and it is the norm of the tensors themselves
        weights = mandel_weights(4)
        expected = ((truth - guess) * weights).square().sum((1, 2)).mean() / 21
        assert torch.allclose(losses[0], expected)


@pytest.mark.parametrize("size", [21, 6])
@pytest.mark.parametrize("group", ["1", "432", "622"])
def test_a_positive_definite_head_gives_stable_crystals_of_their_class(size: int, group: str) -> None:
    x = torch.randn(6, 4).double()
    for definite in (True, False):
        head = build("tensor", 4, size, positive_definite=definite, point_group=group, layers=2).eval().double()
        components = head.predict(head(x)).value
        matrix = head.matrix(components)
        least = torch.linalg.eigvalsh(matrix).amin()
        # the wrong variant: free numbers
        assert (least > 0) == definite
        rank = 4 if size == 21 else 2
        weights = mandel_weights(rank)
        form = (matrix if size == 21 else components) * weights
        assert torch.allclose(symmetrise(form, point_group(group), rank=rank), form, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("definite", [False, True])
def test_it_starts_from_the_mean_tensor_and_learns(definite: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator)
    base = stiffnesses(4)
    tensors = base[0] + torch.einsum("bi,ijk->bjk", x.sigmoid(), base[1:])
    x = wide(x)
    head = build("tensor", 14, 21, positive_definite=definite, dropout=0.0, hidden=32)
    targets = head.components(tensors)
    head.fit(targets)
    for parameter in head.layers[-1].parameters():
        parameter.data.zero_()
    start = head.predict(head(x[:1])).value[0]
    assert torch.allclose(start, targets.mean(0), rtol=1e-2, atol=0.5)
    before = (head.predict(head(x)).value - targets).abs().mean()
    train(head, x, targets, steps=150)
    assert (head.predict(head(x)).value - targets).abs().mean() < 0.6 * before


def test_other_numbers_of_targets_are_refused() -> None:
    with pytest.raises(ConfigError, match="21 targets"):
        build("tensor", 4, 9)
