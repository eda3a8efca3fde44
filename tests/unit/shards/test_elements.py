"""The shipped table of elements."""

from __future__ import annotations

import numpy as np

from shards.elements import CONTINUOUS, NAMES, compute_element_features, element_features


def nearest(z: int) -> int:
    table = element_features()
    distance = np.linalg.norm(table - table[z], axis=1)
    distance[[0, z]] = np.inf
    return int(distance.argmin())


def test_shape_and_scale() -> None:
    table = element_features()
    assert table.shape == (119, len(NAMES)) and table.dtype == np.float32
    assert np.isfinite(table).all() and (table[0] == 0).all()
    continuous = table[1:, : len(CONTINUOUS)]
    np.testing.assert_allclose(continuous.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(continuous.std(axis=0), 1.0, atol=1e-5)
    assert set(np.unique(table[:, len(CONTINUOUS) :])) == {0.0, 1.0}


def test_no_two_elements_are_equal() -> None:
    table = element_features()[1:]
    distance = np.linalg.norm(table[:, None] - table, axis=-1) + 10 * np.eye(118)
    assert distance.min() > 0.3


def test_neighbours_are_chemical_ones() -> None:
    assert nearest(11) == 19 and nearest(26) in (24, 25, 27) and nearest(59) in range(57, 72)
    assert nearest(40) == 72 and nearest(32) == 14 and nearest(47) in (29, 79)


def test_known_orders() -> None:
    table = element_features()
    electronegativity = table[:, NAMES.index("electronegativity")]
    assert electronegativity.argmax() == 9 and electronegativity[55] < electronegativity[3]
    assert table[26, NAMES.index("block_d")] == 1.0 and table[26, NAMES.index("is_metal")] == 1.0
    assert table[:119, NAMES.index("log_melting_point")].argmax() in (6, 74)


def test_the_array_belongs_to_the_caller() -> None:
    element_features()[:] = 7.0
    assert (element_features()[0] == 0).all()


def test_the_shipped_table_is_what_pymatgen_gives() -> None:
    """Values may be corrected upstream; a shift of many of them would be a fault of ours."""
    close = np.isclose(compute_element_features(), element_features(), atol=0.05)
    assert close.mean() > 0.95
