"""What a controller and its agents say to each other: a line of JSON a message, over an agent's stdin and stdout."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import IO

# either side says something this often, so that the other one knows that it lives
BEAT_S = 1.0
# so many lines of output, or characters of them, may wait for a reader; then the older ones are not shown
MOST_WAITING, MOST_TEXT = 5000, 1 << 20


@dataclass(frozen=True)
class Here:
    """Agent: I am up.

    Attributes
    ----------
    host : str
        What the host calls itself.
    pid : int
        The agent.
    port : int
        A free TCP port of the host, kept until `Start`, for the ranks to meet at where this is the first host.
    """

    host: str
    pid: int
    port: int


@dataclass(frozen=True)
class Start:
    """Controller: start these ranks.

    Attributes
    ----------
    command : list of str
        What every rank runs.
    folder : str
        Its working directory.
    environment : dict of str to str
        Variables on top of the agent's own.
    first, world : int
        Rank of the first process on this host, and the number of all ranks.
    slots : list of int
        Numbers of the accelerators; a rank for each.
    node : int
        Which host this is, from 0.
    hosts : list of str
        All hosts.
    address, port
        Where the ranks meet.
    logs : str
        Folder for the ranks' output.
    timeout_s : float
        Seconds without a word from the controller after which the ranks are ended; 0: for ever.
    grace_s : float
        Seconds that they get then to save and end.
    """

    command: list[str]
    folder: str
    environment: dict[str, str]
    first: int
    world: int
    slots: list[int]
    node: int
    hosts: list[str]
    address: str
    port: int
    logs: str
    timeout_s: float = 0.0
    grace_s: float = 60.0


@dataclass(frozen=True)
class Signal:
    """Controller: pass a signal on to the ranks, once they can catch it."""

    number: int


@dataclass(frozen=True)
class End:
    """Controller: end the ranks, by TERM, and after ``grace_s`` seconds by KILL."""

    grace_s: float


@dataclass(frozen=True)
class Output:
    """Agent: a line of the first rank, or a word of the agent itself, to be shown."""

    text: str
    error: bool = False


@dataclass(frozen=True)
class Ended:
    """Agent: a rank has ended.

    Attributes
    ----------
    rank : int
        Which one.
    code : int
        Its exit code; -N where signal N ended it.
    lines : list of str
        The last of its output.
    ours : bool
        Whether the agent had killed it.
    """

    rank: int
    code: int
    lines: list[str] = field(default_factory=list)
    ours: bool = False


@dataclass(frozen=True)
class Refused:
    """Agent: the ranks cannot be started."""

    why: str


@dataclass(frozen=True)
class Done:
    """Agent: no process of the run is left on this host."""


@dataclass(frozen=True)
class Beat:
    """Both: I live."""


Message = Here | Start | Signal | End | Output | Ended | Refused | Done | Beat
KINDS: dict[str, type] = {kind.__name__: kind for kind in Message.__args__}  # type: ignore[attr-defined]


def encode(message: Message) -> str:
    """Return the line that says a message."""
    return json.dumps({"kind": type(message).__name__, **asdict(message)}) + "\n"


def decode(line: str) -> Message | None:
    """Return the message of a line; None where it is none, a greeting of the host's shell for example."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        values = json.loads(line)
        kind = KINDS[values.pop("kind")]
        if values.keys() <= {f.name for f in fields(kind)}:
            return kind(**values)  # type: ignore[no-any-return]
    return None


class Sender:
    """Writes messages in a thread of its own, so that a reader who is slow, or away, stops nobody.

    Where nothing else is to be said for `BEAT_S` it says so.

    Parameters
    ----------
    stream : text file
        Where to; nobody else may write there.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._waiting: deque[Message | None] = deque()
        # of output: lines and characters that wait, and lines that were left out
        self._lines = self._text = self._dropped = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="sender", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Say something; returns at once."""
        self._put(message)

    def close(self, timeout_s: float = 5.0) -> None:
        """Say what is still to be said, and close the stream; not to a reader who takes nothing for ``timeout_s``."""
        self._put(None)
        before = -1
        while self._thread.is_alive() and len(self._waiting) != before:
            before = len(self._waiting)
            self._thread.join(timeout_s)

    def _put(self, message: Message | None) -> None:
        with self._changed:
            self._waiting.append(message)
            self._count(message, 1)
            if self._lines > MOST_WAITING or self._text > MOST_TEXT:
                self._leave_out()
            self._changed.notify()

    def _count(self, message: Message | None, sign: int) -> None:
        if isinstance(message, Output):
            self._lines += sign
            self._text += sign * len(message.text)

    def _leave_out(self) -> None:
        """Drop the older half of the lines, of stdout and stderr alike: the last ones say why a rank has failed."""
        lines, text = self._lines // 2, self._text // 2
        kept: deque[Message | None] = deque()
        for message in self._waiting:
            if isinstance(message, Output) and (self._lines > lines or self._text > text):
                self._count(message, -1)
                self._dropped += 1
            else:
                kept.append(message)
        self._waiting = kept

    def _write(self) -> None:
        with suppress(OSError, ValueError), self._stream:
            while (message := self._next()) is not None:
                self._stream.write(encode(message))
                self._stream.flush()

    def _next(self) -> Message | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting, BEAT_S):
                return Beat()
            if self._dropped and isinstance(self._waiting[0], Output):
                dropped, self._dropped = self._dropped, 0
                return Output(f"({dropped} lines are not shown: they stand in the log)", error=True)
            message = self._waiting.popleft()
            self._count(message, -1)
            return message


def listen(stream: Iterable[str], hear: Callable[[str | None], None], name: str) -> threading.Thread:
    """Call ``hear`` with each line of a stream, without its end, and with None at the end; in a thread."""

    def read() -> None:
        with suppress(OSError, ValueError):
            for line in stream:
                hear(line.rstrip("\n"))
        hear(None)

    thread = threading.Thread(target=read, name=name, daemon=True)
    thread.start()
    return thread
