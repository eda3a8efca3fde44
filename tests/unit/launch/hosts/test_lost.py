"""A host that is lost: not before it was silent for as long as was promised, and fenced until its ranks have ended."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.hosts.agent import ORPHANS_S
from launch.hosts.controller import Attempt, Job, Requests
from launch.hosts.remote import ALIVE_S, Remote


@pytest.mark.parametrize("silence_s", [1, 30, 31, 600])
def test_ssh_gives_no_host_up_that_is_silent_for_less_than_was_promised(silence_s: float) -> None:
    words = Remote.by("ssh -F config", silence_s).command("elsewhere", "launch.hosts.agent")
    options = dict(word.split("=") for word in words[words.index("-F") + 2 : -2] if "=" in word)
    assert words[:3] == ["ssh", "-F", "config"] and words[-2] == "elsewhere"
    # it asks at every interval, and ends when one more is due than may stay without an answer
    assert int(options["ServerAliveInterval"]) == ALIVE_S
    assert silence_s < ALIVE_S * int(options["ServerAliveCountMax"])


def test_a_lost_host_may_have_heard_us_until_now(tmp_path: Path) -> None:
    """What it says may be held up on its way while what we say still arrives: it is deaf from now on at best."""
    ranks: Any = SimpleNamespace(
        host=SimpleNamespace(name="far"), local=False, ranks={1}, over=False, heard=time.monotonic() - 25,
        events=queue.SimpleQueue(), process=SimpleNamespace(pid=0), cut=lambda why: None, send=lambda message: None,
    )  # fmt: skip
    job = Job(["true"], tmp_path, host_timeout_s=30, grace_s=7)
    attempt = Attempt([ranks], job, tmp_path / "logs", Requests(), lambda text, error: None)
    began = time.monotonic()
    attempt._lose(ranks, "it gives no sign")
    assert attempt.outcome.quiet_at >= began + 30 + 7 + ORPHANS_S
    assert attempt.outcome.lost == {"far": "it gives no sign"}
