from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from finetune.descriptors import descriptors_of, magpie, magpie_names, magpie_of
from finetune.estimators.base import ESTIMATORS
from shards.errors import ConfigError, DataError
from shards.reader import Dataset

pytest.importorskip("matminer", reason="needs matminer")


def column(name: str) -> int:
    return magpie_names().index(f"MagpieData {name}")


def test_descriptors_are_statistics_over_the_composition() -> None:
    (row,) = magpie(["Li2O"])
    assert row.shape == (132,) and np.isfinite(row).all()
    assert row[column("minimum Number")] == 3 and row[column("maximum Number")] == 8
    assert row[column("mean Number")] == pytest.approx((2 * 3 + 8) / 3)
    assert row[column("mean Electronegativity")] == pytest.approx((2 * 0.98 + 3.44) / 3)
    assert row[column("mode Number")] == 3


def test_they_depend_on_the_composition_alone() -> None:
    first, second, doubled, other = magpie(["LiCoO2", "O2CoLi", "Li2Co2O4", "LiNiO2"])
    assert np.allclose(first, second) and np.allclose(first, doubled) and not np.allclose(first, other)
    assert magpie([]).shape == (0, 132)


def test_an_element_that_the_table_lacks_is_filled_inside_the_fold_not_by_the_periodic_table() -> None:
    x = magpie(["LiF", "NaCl", "KBr", "OgF2"])
    assert np.isnan(x[3, column("mean MeltingT")]) and np.isfinite(x[:3]).all()
    fitted = ESTIMATORS.options({"kind": "linear_probe"}).fit(x[:3], np.arange(3.0), task="regression", seed=0)
    assert np.isfinite(fitted.predict(x)).all()
    assert fitted.fill[column("mean MeltingT")] == pytest.approx(x[:3, column("mean MeltingT")].mean())


@pytest.mark.parametrize("formula", ["hello", "", "LiQq", "X2O", "Li-1"])
def test_what_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(DataError, match="no formula"):
        magpie([formula])


def test_samples_of_a_data_set_give_theirs_in_order(toy: Dataset) -> None:
    chosen = np.array([7, 3])
    formulas = [toy[int(i)].tags["formula"] for i in chosen]
    assert np.array_equal(magpie_of(toy, chosen), magpie(formulas))
    assert not np.array_equal(magpie_of(toy, chosen), magpie(formulas[::-1]))


def test_matminer_is_imported_when_it_is_asked_for() -> None:
    code = "import sys, finetune.descriptors; assert not {'matminer', 'pymatgen'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_values_of_one_shape_are_descriptors_too(toy: Dataset) -> None:
    chosen = range(20)
    rows = descriptors_of(toy, chosen, "b")
    for i, row in zip(chosen, rows, strict=True):
        value = toy[i].arrays.get("b")
        assert np.isnan(row).all() if value is None else np.array_equal(row, np.ravel(value["values"]))
    assert np.isnan(rows).any() and np.isfinite(rows).any()
    with pytest.raises(ConfigError, match="did you mean 'magpie'"):
        descriptors_of(toy, chosen, "magpi")
