"""The composition encoder knows the formula and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from pretrain.encoders import composition
from pretrain.encoders.composition import element_set
from tests.unit.pretrain.encoders.crystals import build, embedded, inputs, overfit, vectors

OPTIONS = {"dropout": 0.0, "dim": 32}


def cell(symbols, seed=0):
    """Atoms well apart, in some cell."""
    rng = np.random.default_rng(seed)
    sites = np.arange(len(symbols)) / len(symbols)
    coords = np.stack([sites, rng.permutation(sites), rng.permutation(sites)], axis=1)
    return Structure(Lattice.from_parameters(6, 7, 8, 80 + seed, 95, 100), symbols, coords)


FORMULAS = {
    "Li2O": cell(["Li", "Li", "O"]),
    "Li4O2, another cell and order": cell(["O", "Li", "Li", "O", "Li", "Li"], seed=3),
    "Li2O, strained": cell(["Li", "O", "Li"], seed=5),
    "LiO": cell(["Li", "O"]),
    "LiO2": cell(["Li", "O", "O"]),
    "Na2O": cell(["Na", "Na", "O"]),
    "Li2OS": cell(["Li", "Li", "O", "S"]),
    "Li": cell(["Li"]),
}


def test_the_set_of_elements_is_a_count():
    row = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2])
    numbers = torch.tensor([8, 3, 8, 26, 118, 1, 0, 1])
    elements, fractions, mask = element_set(numbers, row, 3)
    for r in range(3):
        counts = Counter(numbers[row == r].tolist())
        total = sum(counts.values())
        expected = [(z, n / total) for z, n in sorted(counts.items())]
        found = list(zip(elements[r][mask[r]].tolist(), fractions[r][mask[r]].tolist(), strict=True))
        assert [z for z, _ in found] == [z for z, _ in expected]
        assert [x for _, x in found] == pytest.approx([x for _, x in expected])
    assert mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]


def test_an_element_that_there_is_not_is_not_the_next_rows():
    with pytest.raises(IndexError):
        element_set(torch.tensor([120, 8]), torch.tensor([0, 1]), 2)


@pytest.mark.parametrize("layers", [0, 2])
class TestFormula:
    def test_one_formula_is_one_vector(self, layers):
        z = vectors(build("composition", layers=layers, **OPTIONS), *FORMULAS.values())
        torch.testing.assert_close(z[1:3], z[:1].expand(2, -1), atol=1e-6, rtol=1e-6)
        different = z[[0, *range(3, len(z))]]
        assert torch.pdist(different).min() > 1e-2

    def test_counts_instead_of_fractions_are_caught(self, layers, monkeypatch):
        def counted(numbers, row, rows):
            elements, fractions, mask = element_set(numbers, row, rows)
            return elements, fractions * torch.bincount(row, minlength=rows)[:, None] / 10, mask

        monkeypatch.setattr(composition, "element_set", counted)
        z = vectors(build("composition", layers=layers, **OPTIONS), *FORMULAS.values())
        assert (z[1] - z[0]).abs().max() > 1e-3

    def test_polymorphs_are_one_and_compounds_are_not(self, layers):
        crystals = [crystal for crystal, _ in embedded("ZnO", "AlN")]
        formulas = [crystal.composition.reduced_formula for crystal in crystals]
        z = vectors(build("composition", layers=layers, **OPTIONS), *crystals)
        for i, one in enumerate(formulas):
            for j, other in enumerate(formulas):
                assert torch.allclose(z[i], z[j], atol=1e-6) == (one == other)


def test_larger_sets_beside_it_change_nothing():
    encoder, crystals = build("composition", **OPTIONS), list(FORMULAS.values())
    alone = torch.cat([vectors(encoder, crystal) for crystal in crystals])
    torch.testing.assert_close(vectors(encoder, *crystals), alone, atol=1e-6, rtol=1e-6)


def test_elements_see_each_other():
    """O in Li2O and O in MgO: without blocks its token is a function of the element and its fraction alone."""
    crystals = [cell(["Li", "O"]), cell(["Mg", "O"])]
    for layers, same in ((0, True), (2, False)):
        encoder = build("composition", layers=layers, **OPTIONS)
        with torch.no_grad():
            encoded = encoder(inputs(*crystals))
        oxygen = encoded.tokens[0, 1], encoded.tokens[1, 0]
        assert torch.allclose(*oxygen, atol=1e-6) == same


def test_rare_elements_weigh_little():
    encoder = build("composition", layers=0, **OPTIONS)
    pure, doped = cell(["Si"] * 40), cell(["Si"] * 39 + ["P"])
    z = vectors(encoder, pure, doped, cell(["P"]))
    assert 0 < (z[1] - z[0]).norm() < 0.25 * (z[2] - z[0]).norm()


def test_autocast_and_learning():
    crystals, volumes = zip(*embedded("Al", "ZnO", "AlN", "MgO", "LiF", "Si", "C", "GaAs"), strict=True)
    first = {
        crystal.composition.reduced_formula: (crystal, volume)
        for crystal, volume in zip(crystals, volumes, strict=True)
    }
    crystals, volumes = zip(*first.values(), strict=True)
    encoder = build("composition", **OPTIONS)
    batch = inputs(*crystals)
    exact = encoder(batch).vector
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encoder(batch).vector
    assert torch.nn.functional.cosine_similarity(rounded.float(), exact).min() > 0.99
    rounded.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert len(crystals) >= 7
    assert overfit(encoder, batch, list(volumes), steps=60) < 0.1
