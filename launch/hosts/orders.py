"""A process on a host that does what it is told: JSON lines on its standard input, JSON lines on its output.

An order is ``{"order": NAME, ...}``, its answer ``{"answer": VALUE}`` or ``{"error": TEXT}``. The process ends with its
standard input.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from launch.hosts.remote import Remote
from launch.hosts.trouble import explained
from shards.errors import HostError

T = TypeVar("T")


def serve(orders: Mapping[str, Callable[..., Any]]) -> None:
    """Carry out orders; the process ends with its standard input, whatever it is at."""
    # whatever libraries print must not get between the answers
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # a greeting of the shell may have left its line open
    answers.write("\n")
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(requests,), daemon=True).start()
    while True:
        request = json.loads(requests.get())
        try:
            answer = {"answer": orders[request.pop("order")](**request)}
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {lines[0]}"}
        answers.write(json.dumps(answer) + "\n")


def _hear(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    # nobody waits for an answer any more, which may never come: a file system hangs, a host does not reply
    os._exit(0)


def _parsed(line: str) -> dict[str, Any]:
    """Return an answer; nothing for the greeting of a shell."""
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


class OrderError(HostError):
    """What a host answers that could not do as it was told."""


class Listener:
    """Gives orders to a module on a host, and waits for the answers; a context.

    Parameters
    ----------
    host : str
        Its name.
    remote : Remote
        Reaches it.
    module : str
        One that calls `serve`.
    """

    def __init__(self, host: str, remote: Remote, module: str) -> None:
        self.host = host
        self.process = remote.popen(host, module)
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=50)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._complaints = threading.Thread(target=self._complain, daemon=True)
        self._reader.start()
        self._complaints.start()

    def ask(self, order: str, patience_s: float, **request: Any) -> Any:
        """Return the answer to an order; `OrderError` where it is an error, `HostError` where none comes."""
        assert self.process.stdin
        with suppress(OSError):
            self.process.stdin.write(json.dumps({"order": order, **request}) + "\n")
        deadline = time.monotonic() + patience_s
        while True:
            try:
                line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise HostError(
                    f"no answer within {patience_s:.0f} s",
                    where=self.host,
                    do="see whether the host is overloaded, its file system hangs or its network drops what is sent",
                ) from None
            if line is None:
                raise self._ended()
            answer = _parsed(line)
            if "error" in answer:
                raise OrderError(str(answer["error"]), where=self.host)
            if "answer" in answer:
                return answer["answer"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _complain(self) -> None:
        assert self.process.stderr
        self._errors.extend(line.rstrip() for line in self.process.stderr)

    def _ended(self) -> HostError:
        # for whoever asks again
        self._answers.put(None)
        self._complaints.join(1.0)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        return explained(self.host, self.process.poll(), list(self._errors))


def ask_all(
    listeners: Sequence[Listener], order: str, patience_s: float, *each: Mapping[str, Any], **request: Any
) -> tuple[dict[str, Any], dict[str, HostError]]:
    """Give all the same order at once.

    Parameters
    ----------
    listeners : sequence of Listener
        H hosts.
    order : str
        The order.
    patience_s : float
        What an answer may take.
    *each : mapping
        H times what the order says to one host alone, or nothing.
    **request
        What it says to all.

    Returns
    -------
    answers, errors : dict
        By name of the host.
    """
    own = {id(listener): more for listener, more in zip(listeners, each, strict=False)}

    def one(listener: Listener) -> Any:
        try:
            return listener.ask(order, patience_s, **request, **own.get(id(listener), {}))
        except HostError as error:
            return error

    found = dict(zip((listener.host for listener in listeners), at_once(one, listeners), strict=True))
    errors = {host: answer for host, answer in found.items() if isinstance(answer, HostError)}
    return {host: answer for host, answer in found.items() if host not in errors}, errors


def at_once(function: Callable[[Listener], T], listeners: Sequence[Listener]) -> list[T]:
    """Return what a function gives for each listener, called for all of them at the same time."""
    # a thread each, however many: some orders are carried out by all together, and none waits for its turn
    with ThreadPoolExecutor(len(listeners) or 1) as pool:
        try:
            return list(pool.map(function, listeners))
        except BaseException:
            # Ctrl-C: nobody is waited for
            for listener in listeners:
                listener.process.kill()
            raise
