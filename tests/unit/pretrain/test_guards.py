"""What the guards decide, from the numbers of a step alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pretrain.config import GuardConfig
from pretrain.guards import DivergenceError, Guards, Verdict


def judged(guards: Guards, *losses: float, first: int = 0, finite: float = 1.0) -> list[Verdict]:
    return [guards.judge(first + i, {"loss": loss, "finite": finite}).verdict for i, loss in enumerate(losses)]


@pytest.mark.parametrize(("loss", "finite"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, 0.5)])
def test_bad_steps_are_skipped_and_the_last_of_a_row_rolls_back(loss: float, finite: float) -> None:
    guards = Guards(GuardConfig(patience=3))
    skip, back = Verdict.SKIP, Verdict.ROLL_BACK
    assert judged(guards, loss, loss, finite=finite) == [skip, skip]
    assert not guards.healthy
    assert judged(guards, 1.0, first=2) == [Verdict.APPLY] and guards.healthy
    # a good step in between: the count begins anew
    assert judged(guards, loss, loss, loss, first=3, finite=finite) == [skip, skip, back]
    assert guards.skipped == 5
    guards.roll_back("bad")
    assert guards.passed_over == {3, 4, 5} and guards.healthy


def test_enough_is_enough() -> None:
    guards = Guards(GuardConfig(patience=1, rollbacks=1))
    judged(guards, math.nan)
    guards.roll_back("the loss is not finite")
    judged(guards, math.nan, first=6)
    with pytest.raises(DivergenceError, match=r"not finite, in 1 steps in a row \(7 to 7\)"):
        guards.roll_back("the loss is not finite")


def noisy(count: int) -> list[float]:
    return list(3 + 0.1 * np.random.default_rng(0).normal(size=count))


@pytest.mark.parametrize(("spikes", "verdict"), [("off", "apply"), ("warn", "apply"), ("skip", "skip")])
def test_a_leap_of_the_loss(spikes: str, verdict: str) -> None:
    guards = Guards(GuardConfig(spikes=spikes, spike_window=20))  # type: ignore[arg-type]
    # in a window that is not full nothing leaps
    assert set(judged(guards, *noisy(19), 9.0)) == {Verdict.APPLY}
    judged(guards, *noisy(20), first=20)
    judgement = guards.judge(40, {"loss": 9.0, "finite": 1.0})
    assert judgement.verdict.value == verdict
    assert ("leaps to 9" in judgement.reason) == (spikes != "off")
    # what is thrown away is no measure for what follows
    assert (guards.losses[-1] == 9.0) == (spikes != "skip")


def test_what_varies_little_may_vary_a_little() -> None:
    """Without a least scatter, a loss that stands still would leap at its first motion."""
    guards = Guards(GuardConfig(spikes="skip", spike_window=20, spike_factor=10))
    assert set(judged(guards, *[2.0] * 20, 2.1, 2.19)) == {Verdict.APPLY}
    assert judged(guards, 2.3, first=22) == [Verdict.SKIP]


def test_a_falling_loss_never_leaps() -> None:
    guards = Guards(GuardConfig(spikes="skip", spike_window=10))
    assert set(judged(guards, *np.linspace(5, 0, 200))) == {Verdict.APPLY}


def test_restored_guards_judge_like_those_that_went_on() -> None:
    config = GuardConfig(spikes="skip", spike_window=20, patience=2)
    first, second = Guards(config), Guards(config)
    losses = [*noisy(30), 9.0, *noisy(5), math.nan]
    judged(first, *losses)
    second.restore(json.loads(json.dumps(first.state())))
    rest = [*noisy(10), 9.0, 3.6, 9.0, 9.0]
    assert judged(first, *rest, first=37) == judged(second, *rest, first=37)
    assert first.state() == second.state()


def test_after_a_return_what_was_learned_stays_known() -> None:
    guards = Guards(GuardConfig(patience=1, spike_window=20))
    judged(guards, *noisy(10))
    saved = guards.state()
    judged(guards, *noisy(5), math.nan, first=10)
    guards.roll_back("bad")
    guards.returned(saved)
    assert list(guards.losses) == saved["losses"]
    assert (guards.passed_over, guards.rollbacks, guards.skipped) == ({15}, 1, 1)
