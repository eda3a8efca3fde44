"""Processes on hosts: here, or there by ssh; what they need to know goes through their standard input."""

from __future__ import annotations

import math
import os
import resource
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# notice a host that is away before TCP does
ALIVE_S = 5
ALIVE = ("-o", "ConnectTimeout=10", "-o", f"ServerAliveInterval={ALIVE_S}")
# never ask for a password, which nobody would see
QUIET = ("-o", "BatchMode=yes")
# answers for the user, which ssh must ask then, though once only
ANSWERING = "sshpass"
# children inherit it, and some close all that they might have
MOST_FILES = 1 << 16
ROOT = Path(__file__).resolve().parents[2]


class Remote:
    """Starts processes on hosts.

    They run in this process's working directory, with the interpreter of this process, as DeepSpeed's launcher has it.
    Nothing is said on their command line but which module to run.

    Parameters
    ----------
    ssh : sequence of str, optional
        The command that reaches another host, which is followed by its name and what to run there.
    """

    def __init__(self, ssh: Sequence[str] = ("ssh", *QUIET, *ALIVE)) -> None:
        self.ssh = list(ssh)

    @classmethod
    def by(cls, command: str, silence_s: float = 0.0) -> Remote:
        """Return one for a command line like ``ssh -F config``, which gets `QUIET` and `ALIVE` where it says nothing.

        By itself ssh gives a host up that is silent for 15 s; it does not before ``silence_s``. Raises `ConfigError`
        where a password stands there.
        """
        from launch.hosts.environment import refuse_secret_words

        refuse_secret_words("--ssh", command, "use a key, or export SSHPASS and give --ssh 'sshpass -e ssh'")
        words = shlex.split(command)
        asked = bool(words) and Path(words[0]).name == ANSWERING
        # of two values ssh takes the first
        quiet = ("-o", "NumberOfPasswordPrompts=1") if asked else QUIET
        count = f"ServerAliveCountMax={max(3, math.ceil(silence_s / ALIVE_S) + 1)}"
        return cls([*words, *quiet, *ALIVE, "-o", count])

    def command(self, host: str, module: str) -> list[str]:
        """Return the command that runs a module of this project on a host."""
        words = [sys.executable, "-m", module]
        if is_here(host):
            return words
        there = f"cd {shlex.quote(os.getcwd())} && PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.join(words)}"
        return [*self.ssh, host, there]

    def popen(self, host: str, module: str) -> subprocess.Popen[str]:
        """Start a module of this project on a host, with pipes for its three streams, a line at a time."""
        _allow_pipes()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            self.command(host, module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C at a terminal reaches the ranks through the controller, once
            start_new_session=True,
        )


def _allow_pipes() -> None:
    """Take as many open files as this process may have: every host needs three, the usual limit is 1,024."""
    with suppress(OSError, ValueError):
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)
        if limit != resource.RLIM_INFINITY and limit < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def is_here(host: str) -> bool:
    """Say whether a name is that of this host."""
    return host in ("localhost", "127.0.0.1", socket.gethostname())
