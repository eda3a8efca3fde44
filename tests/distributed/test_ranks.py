"""The helper itself: a test of ranks is worth nothing if a failing rank goes unnoticed."""

from __future__ import annotations

import os
import threading

import pytest

from tests.distributed.ranks import spawn


def square(offset: int) -> int:
    return int(os.environ["RANK"]) ** 2 + offset


def fail_on_one() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("on purpose")
    threading.Event().wait()


def die_on_zero() -> None:
    if os.environ["RANK"] == "0":
        os._exit(3)


def hang() -> None:
    threading.Event().wait()


def test_results_come_back_by_rank() -> None:
    assert spawn(square, 3, 10) == [10, 11, 14]


@pytest.mark.parametrize(
    ("function", "message"),
    [(fail_on_one, r"rank 1 of 2 failed[\s\S]*on purpose"), (die_on_zero, "rank 0 of 2 failed")],
)
def test_a_failing_rank_is_named(function, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        spawn(function, 2)


def test_a_rank_that_hangs_is_ended() -> None:
    with pytest.raises(TimeoutError, match=r"\[0\]"):
        spawn(hang, 1, timeout_s=1)
