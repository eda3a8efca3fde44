"""The controller's end of one agent: its process, what it said last, and whether it is still there."""

from __future__ import annotations

import queue
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from launch.hosts.hostfile import Host
from launch.hosts.messages import Beat, Done, Ended, Here, Message, Output, Sender, decode, listen
from launch.hosts.remote import Remote, is_here

AGENT = "launch.hosts.agent"


Events = queue.SimpleQueue[tuple["Link", Message | None]]


class Link:
    """One host of an attempt.

    Parameters
    ----------
    host : Host
        Its name and slots.
    remote : Remote
        Reaches it.
    events : SimpleQueue
        Gets ``(link, message)`` for all that the agent says, and ``(link, None)`` once its output has ended.
    """

    def __init__(self, host: Host, remote: Remote, events: Events) -> None:
        self.host, self.local, self.events = host, is_here(host.name), events
        self.process: subprocess.Popen[str] = remote.popen(host.name, AGENT)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.heard = time.monotonic()
        self.here: Here | None = None
        # what was written to stderr: by ssh, the shell there, Python
        self.words: deque[str] = deque(maxlen=20)
        self.ranks: set[int] = set()
        self.done = False
        self.lost: str | None = None
        self._sender = Sender(self.process.stdin)
        self._errors = listen(self.process.stderr, self._warn, f"errors of {host.name}")
        listen(self.process.stdout, self._hear, f"words of {host.name}")

    @property
    def over(self) -> bool:
        """Whether nothing more is to come from this host."""
        return self.done or self.lost is not None

    def send(self, message: Message) -> None:
        """Say something to the agent; returns at once."""
        self._sender.send(message)

    def explain(self) -> str:
        """Return the last words of what was to reach the agent, or how it ended."""
        self._errors.join(1.0)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.poll()
        ended = "it gives no sign" if code is None else f"exit code {code}" if code >= 0 else f"ended by signal {-code}"
        return "; ".join([*list(self.words)[-3:], ended])

    def cut(self, why: str) -> None:
        """Give the host up. What the agent still runs, it ends: it finds its controller gone, once it looks."""
        self.lost = self.lost or why
        # an agent on this host dies with that, and its ranks are told by the kernel; on another host it is ssh
        self.process.kill()

    def close(self) -> None:
        """Let the agent go, which has nothing left to do."""
        self._sender.close(1.0)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5.0)
        self.process.kill()
        self.process.wait()

    def _hear(self, line: str | None) -> None:
        self.heard = time.monotonic()
        if line is None:
            self.events.put((self, None))
            return
        message = decode(line)
        if message is None:
            # a greeting of the shell there
            self._warn(line)
        elif isinstance(message, Here):
            self.here = message
        elif isinstance(message, Done):
            self.done = True
        elif isinstance(message, Ended):
            self.ranks.discard(message.rank)
        if message is not None and not isinstance(message, Beat):
            self.events.put((self, message))

    def _warn(self, line: str | None) -> None:
        if line:
            self.words.append(line)
            if self.here is not None:
                self.events.put((self, Output(f"{self.host.name}: {line}", error=True)))


def connect(
    hosts: Sequence[Host],
    remote: Remote,
    events: Events,
    timeout_s: float,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Link], dict[str, str]]:
    """Start an agent on each host.

    Parameters
    ----------
    hosts : sequence of Host
        Where.
    remote : Remote
        Reaches them.
    events : SimpleQueue
        Gets what the agents say from then on.
    timeout_s : float
        How long they may take.
    stop : callable
        Says whether to leave off waiting.

    Returns
    -------
    links : list of Link
        Of those that are up, in the order of ``hosts``.
    failed : dict of str to str
        Last words of the others, by name.
    """
    links = [Link(host, remote, events) for host in hosts]
    waiting, deadline = set(links), time.monotonic() + timeout_s
    while waiting and time.monotonic() < deadline and not stop():
        with suppress(queue.Empty):
            link, message = events.get(timeout=0.2)
            if isinstance(message, Here) or message is None:
                waiting.discard(link)
    up = [link for link in links if link.here is not None and link.process.poll() is None]
    failed = {}
    for link in links:
        if link not in up:
            link.cut("it cannot be reached")
            failed[link.host.name] = link.explain() if link not in waiting else f"no answer for {timeout_s:.0f} s"
    return up, failed
