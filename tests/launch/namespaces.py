"""Several hosts on this machine: network, UTS and mount namespaces on a bridge, each with an address, a name and sshd.

They share the file system, like nodes of a cluster their home folders. Names and addresses are this process's own, so
that several test runs get on beside each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from tests.distributed.ranks import ROOT, TIMEOUT_S

TOOLS = ("ip", "nsenter", "unshare", "sshd", "ssh", "ssh-keygen")
SBIN = "/usr/sbin:/sbin"
# sshd drops a client that does not answer, as clusters have it
SSHD = """
Port 22
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/{name}.sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
ClientAliveInterval 5
"""
SSH = """
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def missing() -> str | None:
    """Say why there can be no hosts here, or None."""
    if os.geteuid():
        return "several hosts need root"
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if absent:
        return f"several hosts need {', '.join(absent)} (Debian: iproute2 util-linux openssh-server openssh-client)"
    if not Path("/dev/net/tun").exists():
        return "several hosts need /dev/net/tun"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


def sh(*words: object, check: bool = True) -> str:
    """Run a command of the system and return its output."""
    env = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{SBIN}"}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=env)
    assert not check or done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
    return done.stdout


def wait_for(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Return once something is so; it must become so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Node:
    """One host.

    Attributes
    ----------
    name, address : str
        Its host name, which all hosts resolve, and its IPv4 address on ``eth0``.
    """

    def __init__(self, cluster: Cluster, name: str, address: str) -> None:
        self.cluster, self.name, self.address = cluster, name, address
        # holds the namespaces
        self.anchor = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "--propagation", "private", "sh", "-c",
             f"hostname {name}; mount --bind {cluster.folder}/resolv.conf /etc/resolv.conf; "
             f"mount --bind {cluster.folder}/hosts /etc/hosts; exec sleep infinity"],
            start_new_session=True,
        )  # fmt: skip
        wait_for(lambda: self.run("hostname").stdout.strip() == name and self._has_hosts())
        port = f"{cluster.bridge}{address.rpartition('.')[2]}"
        self.cable = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("wire.py")), str(self.anchor.pid), "eth0", port],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True,
        )  # fmt: skip
        assert self.cable.stdout and self.cable.stdout.readline() == "ready\n"
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "mtu", "9000"),
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", cluster.gateway),
        ):
            sh(*self.words("ip", *words))
        sh("ip", "link", "set", port, "mtu", "9000", "master", cluster.bridge, "up")
        (cluster.folder / f"{name}.sshd").write_text(SSHD.format(address=address, folder=cluster.folder, name=name))
        self.start_sshd()

    def _has_hosts(self) -> bool:
        return self.cluster.gateway in self.run("cat", "/etc/hosts").stdout

    def words(self, *words: object) -> list[str]:
        """Return the command that runs another one on this host."""
        inside = ["nsenter", f"--target={self.anchor.pid}", "--net", "--uts", "--mount", f"--wd={self.cluster.cwd}"]
        return [*inside, "--", *map(str, words)]

    def run(self, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        return subprocess.run(
            self.words(*words), capture_output=True, text=True, timeout=TIMEOUT_S, env=self.cluster.environment(**env)
        )

    def popen(self, *words: object, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command on this host, in a session of its own; its output goes to a file."""
        return subprocess.Popen(
            self.words(*words), stdin=subprocess.DEVNULL, stdout=log.open("wb"), stderr=subprocess.STDOUT,
            env=self.cluster.environment(**(env or {})), start_new_session=True,
        )  # fmt: skip

    def start_sshd(self) -> None:
        """Let this host take ssh connections."""
        Path("/run/sshd").mkdir(exist_ok=True)
        sh(*self.words(shutil.which("sshd", path=SBIN), "-f", self.cluster.folder / f"{self.name}.sshd"))
        wait_for((self.cluster.folder / f"{self.name}.sshd.pid").exists)

    def stop_sshd(self) -> None:
        """Refuse ssh connections from now on; those that are open stay."""
        pid = self.cluster.folder / f"{self.name}.sshd.pid"
        with contextlib.suppress(psutil.Error, FileNotFoundError):
            listener = psutil.Process(int(pid.read_text()))
            listener.kill()
            wait_for(lambda: not listener.is_running() or listener.status() == psutil.STATUS_ZOMBIE)
        pid.unlink(missing_ok=True)

    def wire(self, **orders: float | bool) -> None:
        """Make the cable slow, lossy or dead: ``delay_s`` (one way), ``loss`` (share of frames), ``up``."""
        assert self.cable.stdin and self.cable.stdout
        self.cable.stdin.write(json.dumps(orders) + "\n")
        assert self.cable.stdout.readline() == "done\n"

    def mend(self) -> None:
        """Make the cable whole again."""
        self.wire(delay_s=0.0, loss=0.0, up=True)

    def processes(self) -> list[psutil.Process]:
        """Return what runs on this host, but for its anchor and sshd."""
        here = os.readlink(f"/proc/{self.anchor.pid}/ns/net")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.readlink(f"/proc/{process.pid}/ns/net") != here or process.pid == self.anchor.pid:
                    continue
                if process.name() != "sshd" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill_all(self) -> None:
        """End everything on this host at once, as a power cut would, but for its anchor and sshd's listener."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def close(self) -> None:
        """End this host."""
        self.stop_sshd()
        here = os.readlink(f"/proc/{self.anchor.pid}/ns/net")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.readlink(f"/proc/{process.pid}/ns/net") == here:
                    process.kill()
        self.cable.kill()
        for process in (self.anchor, self.cable):
            process.wait()


class Cluster:
    """Hosts ``node1`` ... on a bridge; a context that leaves nothing behind.

    Parameters
    ----------
    folder : Path
        For keys, configurations and logs.
    count : int
        Number of hosts.

    Attributes
    ----------
    nodes : list of Node
    gateway : str
        Address of this machine on the bridge, for servers that the hosts use.
    cwd : Path
        Where commands run; the project's root unless a test changes it.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.cwd = folder, ROOT
        self.nodes: list[Node] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._network()
            addresses = {f"node{i}": f"{self.prefix}.{i}" for i in range(1, count + 1)}
            lines = ["127.0.0.1 localhost", f"{self.gateway} gateway"]
            # no name server: asking one that does not answer takes 10 s each time that torch wants a client's name
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
            (folder / "hosts").write_text("\n".join([*lines, *(f"{a} {n}" for n, a in addresses.items()), ""]))
            for key in ("key", "host_key"):
                sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key)
            (folder / "ssh_config").write_text(SSH.format(folder=folder))
            # the ssh of pdsh, mpirun and DeepSpeed, none of which takes a configuration file
            wrapper = folder / "bin" / "ssh"
            wrapper.parent.mkdir()
            wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
            wrapper.chmod(0o755)
            for name, address in addresses.items():
                self.nodes.append(Node(self, name, address))
            stack.pop_all()

    def _network(self) -> None:
        luck = random.Random(os.getpid() ^ time.monotonic_ns())
        while True:
            number = luck.randrange(65536)
            self.bridge, self.prefix = f"mb{number:04x}", f"10.{128 + number // 512}.{number // 2 % 256}"
            if self.prefix not in sh("ip", "-4", "addr") and self.bridge not in sh("ip", "link"):
                break
        self.gateway = f"{self.prefix}.254"
        sh("ip", "link", "add", self.bridge, "type", "bridge")
        sh("ip", "addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        sh("ip", "link", "set", self.bridge, "mtu", "9000", "up")

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of commands on hosts."""
        path = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:{SBIN}"
        fixed = {"PATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        return {**os.environ, **fixed, **more}

    def hostfile(self, slots: Sequence[int] | int = 1, name: str = "hostfile") -> Path:
        """Write DeepSpeed's hostfile of all hosts."""
        numbers = [slots] * len(self.nodes) if isinstance(slots, int) else slots
        path = self.folder / name
        path.write_text("".join(f"{node.name} slots={n}\n" for node, n in zip(self.nodes, numbers, strict=True)))
        return path

    def strays(self) -> list[str]:
        """Return the command lines of everything that runs on the hosts."""
        found = []
        for node in self.nodes:
            for process in node.processes():
                with contextlib.suppress(psutil.Error):
                    found.append(f"{node.name}: {' '.join(process.cmdline())}")
        return found

    def close(self) -> None:
        """End all hosts."""
        for node in self.nodes:
            node.close()
        sh("ip", "link", "del", self.bridge, check=False)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextlib.contextmanager
def hosts(tmp: pytest.TempPathFactory, count: int) -> Iterator[Cluster]:
    """Make hosts for the tests of a module, or skip them and say why."""
    if reason := missing():
        pytest.skip(reason)
    with Cluster(tmp.mktemp("cluster"), count) as cluster:
        yield cluster
