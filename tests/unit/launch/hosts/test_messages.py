"""What controller and agent say to each other."""

from __future__ import annotations

import io
import os
import threading
import time
from typing import get_type_hints

import pytest

from launch.hosts.messages import (
    BEAT_S,
    MOST_TEXT,
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
from launch.run_cli import launch_run

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
    sender.send(Output("the last line"))
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
    assert heard[-2:] == [Output("the last line"), Ended(0, 1)]


@pytest.mark.parametrize("length", [100, 60_000])
@pytest.mark.parametrize("error", [False, True])
def test_what_waits_for_a_reader_is_bounded_and_the_last_lines_arrive(length: int, error: bool) -> None:
    reader, writer = os.pipe()
    sender = Sender(os.fdopen(writer, "w"))
    for number in range(3 * MOST_WAITING):
        sender.send(Output(f"{number} ".ljust(length), error))
    for rank in range(3):
        sender.send(Ended(rank, 1, ["why"]))
    assert sum(len(message.text) for message in sender._waiting if isinstance(message, Output)) <= MOST_TEXT
    assert len(sender._waiting) <= MOST_WAITING + 3
    with os.fdopen(reader) as lines:
        closing = threading.Thread(target=sender.close)
        closing.start()
        heard = [decode(text) for text in lines]
        closing.join()
    assert heard[-3:] == [Ended(rank, 1, ["why"]) for rank in range(3)]
    last = [message.text.split()[0] for message in heard[-10:] if isinstance(message, Output)]
    assert last == [str(number) for number in range(3 * MOST_WAITING - 7, 3 * MOST_WAITING)]


def test_a_reader_who_is_slow_but_reads_is_waited_for() -> None:
    reader, writer = os.pipe()
    sender = Sender(os.fdopen(writer, "w"))
    for _ in range(2000):
        sender.send(Output("x" * 400))
    sender.send(Done())
    closing = threading.Thread(target=sender.close, args=(0.2,))
    closing.start()
    with os.fdopen(reader, "rb", 0) as pipe:
        heard = b""
        while piece := pipe.read(1 << 16):
            heard += piece
            time.sleep(0.05)
            if not closing.is_alive():
                break
        heard += pipe.read()
    closing.join()
    assert decode(heard.decode().splitlines()[-1]) == Done()


def test_the_smallest_host_timeout_is_several_beats() -> None:
    option = get_type_hints(launch_run, include_extras=True)["host_timeout"].__metadata__[0]
    assert option.min >= 4 * BEAT_S


def test_a_slow_reader_is_not_told_of_every_line_that_he_misses() -> None:
    reader, writer = os.pipe()
    sender = Sender(os.fdopen(writer, "w"))
    for _ in range(2 * MOST_WAITING):
        sender.send(Output("x" * 100))
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
    # one, or a few where the sender had taken some lines already
    assert 1 <= sum(isinstance(message, Output) and message.error for message in heard) <= 4


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
