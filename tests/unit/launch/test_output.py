"""What a rank prints: a rank that nobody listens to goes on to its end."""

from __future__ import annotations

import errno
import io
import os
from typing import Any

import pytest

from launch.hosts.redaction import Redactor
from launch.output import Tolerant
from tests.canaries import CANARIES, found_in


def test_what_nobody_reads_is_dropped_and_told_once() -> None:
    reader, writer = os.pipe()
    told: list[str] = []
    with os.fdopen(writer, "w", buffering=1) as stream:
        tolerant: Any = Tolerant(stream, lambda: told.append("lost"), str)
        print("heard", file=tolerant, flush=True)
        assert os.read(reader, 100) == b"heard\n"
        os.close(reader)
        # the wrong variant: the stream itself would end the run here
        with pytest.raises(BrokenPipeError):
            print("unheard", file=stream, flush=True)
        for _ in range(3):
            print("unheard", file=tolerant, flush=True)
        assert told == ["lost"]
        assert tolerant.fileno() == writer and not tolerant.closed


def test_a_full_disk_loses_lines_but_not_the_reader() -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "full")

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    told: list[str] = []
    tolerant: Any = Tolerant(Full(), lambda: told.append("lost"), str)  # type: ignore[arg-type]
    print("lost", file=tolerant, flush=True)
    assert told == []


def test_no_secret_is_printed() -> None:
    stream = io.StringIO()
    tolerant: Any = Tolerant(stream, lambda: None, Redactor(CANARIES))
    for value in CANARIES.values():
        print("it is", value, file=tolerant)
    assert stream.getvalue().count("it is ***\n") and not found_in(stream.getvalue())
