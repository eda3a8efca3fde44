"""One rank a host adds up tensors; who does not come is known."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from launch.hosts.orders import Listener, ask_all, at_once
from launch.hosts.remote import Remote
from pretrain.ports import free_port

MEMBER = "launch.hosts.collective"


@pytest.fixture
def members() -> Any:
    with ExitStack() as stack:
        both = [Listener(name, Remote(), MEMBER) for name in ("localhost", "127.0.0.1")]
        for member in both:
            stack.callback(member.close)
        yield both


def come(members: list[Listener], world: int, timeout_s: float) -> tuple[dict[str, Any], dict[str, Any]]:
    request = {"address": "127.0.0.1", "port": free_port(), "environment": {}, "timeout_s": timeout_s}
    return ask_all(members, "come", 120.0, *({"rank": rank} for rank in range(len(members))), world=world, **request)


def test_two_add_up(members: list[Listener]) -> None:
    came, errors = come(members, 2, 60.0)
    assert came == {"localhost": [], "127.0.0.1": []} and not errors
    results, errors = ask_all(members, "reduce", 120.0, slot=None, timeout_s=60.0)
    assert not errors and len(results) == 2
    assert all(result["bytes_per_s"] > 0 and result["latency_s"] > 0 for result in results.values())


def test_who_does_not_come_is_known(members: list[Listener]) -> None:
    came, errors = come(members, 3, 3.0)
    assert came["localhost"] == [2] and not errors


def test_hundreds_of_hosts_do_at_the_same_time_what_needs_them_all() -> None:
    hosts = [cast(Listener, SimpleNamespace(host=f"w{number}")) for number in range(600)]
    all_there = threading.Barrier(len(hosts))

    def reduce(listener: Listener) -> str:
        all_there.wait(30.0)
        return listener.host

    assert at_once(reduce, hosts) == [host.host for host in hosts]
