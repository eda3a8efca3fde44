"""The pre-flight on two hosts: each thing that may differ or fail does so for real on one of them, which is named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from pretrain.ports import free_port
from tests.distributed.ranks import ROOT
from tests.distributed.runs import Workshop
from tests.launch.namespaces import Cluster, Node, wait_for

pytestmark = pytest.mark.launch

SCRIPT = ROOT / "docs" / "examples" / "launch" / "check.sh"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@pytest.fixture
def shop(tmp_path: Path, toy_folder: Path) -> Workshop:
    return Workshop.make(tmp_path, toy_folder, epochs=1, evaluate=1, save=2)


class Check:
    """The script of the docs, `matloom launch check`, on the first host."""

    def __init__(self, cluster: Cluster, shop: Workshop) -> None:
        self.cluster, self.shop = cluster, shop

    def __call__(self, *options: object, code: int = 8, hostfile: Path | None = None) -> list[dict[str, Any]]:
        done = self.cluster.nodes[0].run(
            SCRIPT, "--json", *options, HOSTFILE=str(hostfile or self.cluster.hostfile()),
            RECIPE=str(self.shop.recipe), OUT=str(self.shop.folder / "run"), **self.shop.environment(),
        )  # fmt: skip
        assert done.returncode == code, done.stderr + done.stdout
        assert self.cluster.strays() == []
        # how much memory this machine has left is not the tests' doing
        return [row for row in json.loads(done.stdout) if row["name"] != "memory"]

    def bad(self, *options: object, code: int = 8, hostfile: Path | None = None) -> dict[str, str]:
        """By name, what was found wrong on the second host, with its remedy; nothing may be wrong elsewhere."""
        rows = [row for row in self(*options, code=code, hostfile=hostfile) if row["status"] != "ok"]
        rows = [row for row in rows if not row["value"].startswith("not tried")]
        assert {row["host"] for row in rows} == {self.cluster.nodes[1].name}, rows
        assert all(row["do"] for row in rows)
        return {row["name"]: f"{row['status']}: {row['value']} -> {row['do']}" for row in rows}


@pytest.fixture
def check(cluster: Cluster, shop: Workshop) -> Check:
    return Check(cluster, shop)


@contextmanager
def mounted(node: Node, target: Path, *words: object) -> Iterator[None]:
    """Mount something over a file or folder, as that one host sees it."""
    done = node.run("mount", *words, target)
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        wait_for(lambda: node.run("umount", target).returncode == 0)


def instead(node: Node, target: Path, text: str, folder: Path) -> Any:
    """Let a host see another text in a file."""
    other = folder / f"other-{target.name}"
    other.write_text(text)
    return mounted(node, target, "--bind", other)


@contextmanager
def sshd(node: Node, more: str) -> Iterator[None]:
    """Let sshd of a host have more in its configuration; the first of two values counts."""
    config = node.cluster.folder / f"{node.name}.sshd"
    before = config.read_text()
    node.stop_sshd()
    config.write_text(more + before)
    node.start_sshd()
    try:
        yield
    finally:
        node.stop_sshd()
        config.write_text(before)
        node.start_sshd()


def test_hosts_that_are_ready(check: Check) -> None:
    findings = check(code=0)
    assert {finding["status"] for finding in findings} == {"ok"}, findings
    assert next(row for row in findings if row["name"] == "collective")["value"].startswith("gloo, ")
    assert not (check.shop.folder / "run").exists()


def test_everything_that_differs_is_named_at_once(
    check: Check, cluster: Cluster, tmp_path: Path, toy_folder: Path
) -> None:
    node = cluster.nodes[1]
    module, recipe, manifest = ROOT / "launch" / "bars.py", check.shop.recipe, toy_folder / "manifest.json"
    metadata = next(Path(file.locate()) for file in distribution("timm").files or [] if file.name == "METADATA")
    version = distribution("timm").version
    with ExitStack() as stack:
        for path, text in (
            (module, module.read_text() + "# another one\n"),
            (recipe, recipe.read_text().replace("seed = 5", "seed = 6")),
            (manifest, manifest.read_text() + " "),
            (metadata, metadata.read_text().replace(f"Version: {version}", "Version: 1.0.0")),
        ):
            stack.enter_context(instead(node, path, text, tmp_path))
        bad = check.bad()
    assert "launch/bars.py is not as on node1 -> put the project on storage" in bad.pop("code")
    assert f"timm 1.0.0, but {version} on node1 -> pip install 'timm=={version}'" in bad.pop("versions")
    assert f"{recipe} is another one than where the run was started -> put it on storage" in bad.pop("recipe")
    assert f"the manifest of {toy_folder} is another one than on node1 -> copy the data set" in bad.pop("data")
    assert not bad


@pytest.mark.parametrize(("skew", "status", "code"), [("-45s", "failed: 4", 8), ("+4s", "warning: ", 0)])
def test_a_clock_that_is_wrong(check: Check, cluster: Cluster, skew: str, status: str, code: int) -> None:
    if not FAKETIME.exists():
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    with sshd(cluster.nodes[1], f"SetEnv LD_PRELOAD={FAKETIME} FAKETIME={skew} FAKETIME_DONT_FAKE_MONOTONIC=1\n"):
        bad = check.bad(code=code)
    assert list(bad) == ["clock"]
    assert status in bad["clock"] and ("behind" if skew[0] == "-" else "ahead of") in bad["clock"]
    assert "timedatectl" in bad["clock"]


def test_a_port_that_is_taken(check: Check, cluster: Cluster) -> None:
    first, port = cluster.nodes[0], free_port()
    program = f"import socket, time; s = socket.create_server(('', {port})); print('up', flush=True); time.sleep(1000)"
    log = check.shop.folder / "taken.log"
    taken = first.popen("python", "-c", program, log=log)
    try:
        wait_for(lambda: "up" in log.read_text())
        done = first.run(
            "matloom", "launch", "check", check.shop.recipe, "--out", check.shop.folder / "run",
            "--hostfile", cluster.hostfile(), "--master-port", port, **check.shop.environment(),
        )  # fmt: skip
    finally:
        taken.kill()
        taken.wait()
    assert done.returncode == 8
    line = next(line for line in done.stdout.splitlines() if line.startswith("FAILED"))
    assert f"port {port} is not free: Address already in use" in line
    assert "node1" in line and f"process {taken.pid}" in line and "--master-port" in line


def test_a_name_that_one_host_does_not_know(check: Check, cluster: Cluster, tmp_path: Path) -> None:
    second = cluster.nodes[1]
    with instead(second, Path("/etc/hosts"), f"127.0.0.1 localhost\n{second.address} node2\n", tmp_path):
        bad = check.bad()
    assert bad.pop("names").startswith("failed: it does not know 'node1'")
    assert "no connection to node1:" in bad.pop("network")
    assert not bad


def test_a_name_that_one_host_takes_for_another(check: Check, cluster: Cluster, tmp_path: Path) -> None:
    second = cluster.nodes[1]
    text = f"127.0.0.1 localhost\n{cluster.gateway} node1\n{second.address} node2\n"
    with instead(second, Path("/etc/hosts"), text, tmp_path):
        bad = check.bad()
    assert list(bad) == ["network"] and "firewall" in bad["network"]
    assert "no connection to node1:" in bad["network"]


def test_folders_that_cannot_be_used(check: Check, cluster: Cluster) -> None:
    node, run = cluster.nodes[1], check.shop.folder / "run"
    run.mkdir()
    with mounted(node, run, "--bind", run):
        assert node.run("mount", "-o", "remount,bind,ro", run).returncode == 0
        bad = check.bad()
    assert f"{run} cannot be written: Read-only file system -> give the user" in bad.pop("disk") and not bad
    with (
        mounted(node, run, "-t", "tmpfs", "-o", "size=512k", "tmpfs"),
        mounted(node, Path("/dev/shm"), "-t", "tmpfs", "-o", "size=16m", "tmpfs"),
    ):
        bad = check.bad()
    assert f"{run} cannot be written: No space left on device -> free some space" in bad.pop("disk")
    assert "16 MiB free, less than 32 MiB a rank -> mount -o remount,size=1G /dev/shm" in bad.pop("shared memory")
    assert not bad
    with mounted(node, run, "-t", "tmpfs", "tmpfs"):
        bad = check.bad()
    assert f"{run} is not the same folder as where the run was started -> put it on storage" in bad.pop("disk")
    assert not bad


def test_nothing_runs_there(check: Check, cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.nodes[1]
    for folder, said in (
        (ROOT / ".venv", f"there is no Python at {sys.executable}"),
        (ROOT / "launch", f"the project is missing there at {ROOT}"),
    ):
        with mounted(node, folder, "-t", "tmpfs", "tmpfs"):
            bad = check.bad()
        assert said in bad.pop("host") and not bad
    cluster.cwd = tmp_path / "work"
    cluster.cwd.mkdir()
    try:
        with mounted(node, tmp_path, "-t", "tmpfs", "tmpfs"):
            bad = check.bad()
    finally:
        cluster.cwd = ROOT
    assert "the working directory is missing there" in bad.pop("host") and not bad


def test_hosts_that_ssh_does_not_reach(check: Check, cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.nodes[1]
    with sshd(node, "AuthorizedKeysFile none\n"):
        assert "it does not take our ssh key" in check.bad()["host"]
    node.stop_sshd()
    assert "it refuses ssh connections" in check.bad()["host"]
    node.start_sshd()
    node.wire(up=False)
    assert "ping node2" in check.bad("--ssh", "ssh -o ConnectTimeout=3")["host"]
    node.mend()
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=1\nnode9 slots=1\n")
    findings = [row for row in check(hostfile=hostfile) if row["status"] == "failed"]
    assert [(row["name"], row["host"]) for row in findings] == [("host", "node9")]
    assert "its name is unknown here" in findings[0]["value"] and "hostfile" in findings[0]["do"]


def test_a_slow_cable(check: Check, cluster: Cluster) -> None:
    cluster.nodes[1].wire(delay_s=0.25)
    findings = check(code=0)
    slow = {row["name"]: row for row in findings if row["status"] == "warning"}
    assert set(slow) == {"network", "collective"}
    assert slow["network"]["host"] == "node2" and "ms to node1 and back" in slow["network"]["value"]
    assert int(slow["network"]["value"].split()[0]) >= 500


def test_a_host_that_hangs_is_named_within_the_deadline(check: Check, cluster: Cluster, tmp_path: Path) -> None:
    # a file system that does not answer: opening a FIFO waits for a writer
    fifo = tmp_path / "fifo"
    shutil.rmtree(fifo, ignore_errors=True)
    cluster.nodes[1].run("mkfifo", fifo)
    with mounted(cluster.nodes[1], ROOT / "launch" / "bars.py", "--bind", fifo):
        bad = check.bad("--timeout", 15)
    assert "no answer within 15 s" in bad["host"]
