"""The hosts themselves: were they not apart, the tests that use them would show nothing."""

from __future__ import annotations

import shutil
import socket
import time

import pytest

from tests.launch.namespaces import Cluster, wait_for

pytestmark = pytest.mark.launch


def test_hosts_have_names_addresses_and_ssh_of_their_own(cluster: Cluster) -> None:
    first, second = cluster.nodes
    assert first.run("ssh", second.name, "hostname").stdout.strip() == "node2"
    assert second.run("ssh", first.name, "hostname -I").stdout.split() == [first.address]
    assert socket.gethostname() not in ("node1", "node2")
    done = first.run("ping", "-c", "1", cluster.gateway) if _has("ping") else None
    assert done is None or done.returncode == 0


def test_pdsh_reaches_both(cluster: Cluster) -> None:
    if not _has("pdsh"):
        pytest.skip("pdsh is not installed")
    done = cluster.nodes[0].run("pdsh", "-S", "-w", "node1,node2", "hostname", PDSH_RCMD_TYPE="ssh")
    assert sorted(done.stdout.splitlines()) == ["node1: node1", "node2: node2"], done.stderr


def test_a_cable_that_is_cut_and_a_refusing_host(cluster: Cluster) -> None:
    first, second = cluster.nodes
    second.wire(up=False)
    cut = first.run("ssh", "-o", "ConnectTimeout=2", second.name, "true")
    assert cut.returncode == 255
    assert any(word in cut.stderr.lower() for word in ("timed out", "no route")), cut.stderr
    second.mend()
    second.stop_sshd()
    refused = first.run("ssh", second.name, "true")
    assert refused.returncode == 255 and "refused" in refused.stderr
    second.start_sshd()
    assert first.run("ssh", second.name, "true").returncode == 0


def test_a_delay_is_felt(cluster: Cluster) -> None:
    first, second = cluster.nodes
    program = f"import socket; socket.create_connection(('{second.address}', 22)).close()"

    def seconds() -> float:
        began = time.monotonic()
        assert first.run("python", "-c", program).returncode == 0
        return time.monotonic() - began

    second.wire(delay_s=0.5)
    # there and back
    assert seconds() > 1.0


def test_what_runs_on_a_host_is_seen_and_ended(cluster: Cluster) -> None:
    sleeping = cluster.nodes[1].popen("sleep", "1000", log=cluster.folder / "sleep.log")
    wait_for(lambda: cluster.strays() == ["node2: sleep 1000"])
    cluster.nodes[1].kill_all()
    sleeping.wait()
    assert cluster.strays() == []


def _has(tool: str) -> bool:
    return shutil.which(tool) is not None
