"""Quantities with their unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.estimates.units import BYTES, OPERATIONS, RATES, SECONDS, quantity

KINDS = [BYTES, OPERATIONS, RATES, SECONDS]


def test_bits_are_an_eighth_and_binary_prefixes_are_binary() -> None:
    assert quantity("400 Gb/s", RATES) == 8 * quantity("6.25GB/s", RATES) == 50e9
    assert quantity("80 GiB", BYTES) == 80 * 2**30
    assert quantity("1.9 us", SECONDS) == pytest.approx(1.9e-6)
    assert quantity("3e2 TFLOP/s", OPERATIONS) == 3e14


@pytest.mark.parametrize(
    "text", ["400", 400, "400 gb/s", "GB/s", "-5 GB/s", "0 GB/s", "400 GB", "1e400 GB/s", "5 us", ""]
)
def test_what_is_no_rate_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"no number with a unit|above 0"):
        quantity(text, RATES)


@given(kind=st.integers(0, 3), value=st.floats(1e-3, 1e6), data=st.data())
def test_a_unit_is_of_one_kind_alone(kind: int, value: float, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(sorted(KINDS[kind])))
    text = f"{value!r} {unit}"
    assert quantity(text, KINDS[kind]) == pytest.approx(value * KINDS[kind][unit])
    for other in KINDS[:kind] + KINDS[kind + 1 :]:
        with pytest.raises(ValueError, match="no number with a unit"):
            quantity(text, other)
