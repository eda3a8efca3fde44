"""Modalities that are never paired meet through a frozen anchor: the toy proof, shortened."""

from __future__ import annotations

from benchmarks.toys.imagebind_emergent import GALLERY, train

NEVER_PAIRED = ("a -> b, never paired", "b -> a, never paired")


def test_never_paired_modalities_meet_at_the_frozen_anchor() -> None:
    found = train(0, paired=True, steps=100)
    assert all(found[name] > 0.5 for name in NEVER_PAIRED)
    assert found["anchor unchanged"] == 1
    shuffled = train(0, paired=False, steps=100)
    assert all(shuffled[name] < 5 / GALLERY for name in NEVER_PAIRED)


def test_an_anchor_that_learns_is_seen_to_move() -> None:
    assert train(0, paired=True, steps=2, kind="anchored")["anchor unchanged"] == 0
