"""What controller and agent say to each other."""

from __future__ import annotations

import io
import os
import threading
import time

import pytest

from launch.hosts.messages import (
    MOST_WAITING,
    Beat,
    Done,
    End,
    Ended,
    Here,
    Message,
    Output,
    Refused,
    Sender,
    Signal,
    Start,
    decode,
    encode,
    listen,
)

START = Start(
    command=["python", "x y"], folder="/w", environment={"A": 'ü"\n'}, first=2, world=4, slots=[0, 3], node=1,
    hosts=["a", "b"], address="a", port=1, logs="/l", timeout_s=3.0,
)  # fmt: skip
ALL = [Here("a", 1, 2), START, Signal(15), End(1.5), Output("é\n\x00", True), Ended(1, -9, ["x"]), Refused("no")]


@pytest.mark.parametrize("message", [*ALL, Done(), Beat()])
def test_what_is_said_arrives(message: Message) -> None:
    line = encode(message)
    assert line.count("\n") == 1 and line.isascii()
    assert decode(line) == message


@pytest.mark.parametrize(
    "line", ["", "Welcome to node1!", "[1]", "3", '{"kind": "Start"}', '{"kind": "Beat", "more": 1}', '{"kind": "os"}']
)
def test_what_a_shell_says_is_no_message(line: str) -> None:
    assert decode(line) is None


def test_who_has_nothing_to_say_says_so() -> None:
    reader, writer = os.pipe()
    sender = Sender(os.fdopen(writer, "w"))
    with os.fdopen(reader) as lines:
        assert decode(lines.readline()) == Beat()
        sender.send(Done())
        assert decode(lines.readline()) == Done()
        sender.close()
        assert lines.readline() == ""


def test_a_reader_who_is_away_stops_nobody_and_misses_output_alone() -> None:
    reader, writer = os.pipe()
    sender = Sender(os.fdopen(writer, "w"))
    line = "x" * 100
    for _ in range(3 * MOST_WAITING):
        sender.send(Output(line))
    sender.send(Ended(0, 1))
    with os.fdopen(reader) as lines:
        closing = threading.Thread(target=sender.close)
        closing.start()
        heard = [decode(text) for text in lines]
        closing.join()
    outputs = [message for message in heard if message == Output(line)]
    notes = [message.text for message in heard if isinstance(message, Output) and message.error]
    assert len(outputs) + sum(int(note[1:].split()[0]) for note in notes) == 3 * MOST_WAITING
    # not one for every line that finds a place
    assert len(notes) <= 3
    assert heard[-1] == Ended(0, 1)


def test_a_slow_reader_is_not_told_of_every_line_that_he_misses() -> None:
    reader, writer = os.pipe()
    sender = Sender(os.fdopen(writer, "w"))
    for _ in range(2 * MOST_WAITING):
        sender.send(Output("x" * 1000))
    with os.fdopen(reader) as lines:
        heard = []
        for _ in range(300):
            heard.append(decode(lines.readline()))
            for _ in range(3):
                sender.send(Output("y"))
        sender.send(Done())
        closing = threading.Thread(target=sender.close)
        closing.start()
        heard += [decode(text) for text in lines]
        closing.join()
    assert sum(isinstance(message, Output) and message.error for message in heard) == 1


def test_a_reader_who_has_gone_stops_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sender = Sender(os.fdopen(writer, "w"))
    sender.send(Done())
    began = time.monotonic()
    sender.close(60.0)
    assert time.monotonic() - began < 60


def test_the_end_is_heard_too() -> None:
    heard: list[str | None] = []
    listen(io.StringIO("a\nb"), heard.append, "x").join()
    assert heard == ["a", "b", None]
