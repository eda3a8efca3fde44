"""Slots count the accelerators that are visible on a host."""

from __future__ import annotations

import pytest

from launch.hosts.agent import _place
from launch.hosts.messages import Start
from launch.hosts.visible import narrowed
from shards.errors import HostError

CUDA, HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("slots", "environment", "expected"),
    [
        ((0, 1), {}, {}),
        ((0, 1), {CUDA: "2,3"}, {}),
        ((1,), {}, {CUDA: "1"}),
        ((1,), {CUDA: "2,3"}, {CUDA: "3"}),
        ((0, 2), {CUDA: "GPU-a, GPU-b,MIG-c"}, {CUDA: "GPU-a,MIG-c"}),
        ((1, 2), {HIP: "4,5,6"}, {HIP: "5,6"}),
        ((1,), {CUDA: "4,5", HIP: "4,5"}, {CUDA: "5", HIP: "5"}),
        ((1,), {"ZE_AFFINITY_MASK": "0.1,1.0"}, {"ZE_AFFINITY_MASK": "1.0"}),
        # no accelerator is to be used
        ((1,), {CUDA: ""}, {CUDA: ""}),
        ((1,), {CUDA: "-1"}, {CUDA: "-1"}),
    ],
)
def test_slots_are_chosen_among_what_is_visible(
    slots: tuple[int, ...], environment: dict[str, str], expected: dict[str, str]
) -> None:
    assert narrowed(slots, environment) == expected


def test_a_slot_that_is_not_visible_is_named() -> None:
    with pytest.raises(HostError, match="no slot 2") as caught:
        narrowed((0, 2), {CUDA: "2,3"})
    assert "CUDA_VISIBLE_DEVICES=2,3 leaves 2 visible" in str(caught.value)


def test_a_rank_sees_the_accelerators_of_its_slots() -> None:
    start = Start(["x"], "/", {}, 0, 1, [1], 0, ["h"], "h", 1, "/l")
    place = _place(start, 0, {CUDA: "2,3"})
    assert (place[CUDA], place["LOCAL_RANK"]) == ("3", "0")
