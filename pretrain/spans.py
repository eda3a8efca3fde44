"""Where the time of a step goes: named spans, which cost nothing while nobody measures."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_measuring: list[Spans] = []


class Spans:
    """Collects the seconds of named spans while it is active (``with Spans() as spans``).

    On a GPU the device is waited for at both ends of a span; measure now and then, not every step.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def __enter__(self) -> Spans:
        _measuring.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _measuring.remove(self)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Measure a block for whoever collects."""
    if not _measuring:
        yield
        return
    _wait()
    began = time.perf_counter()
    try:
        yield
    finally:
        _wait()
        for spans in _measuring:
            spans.seconds[name] += time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
