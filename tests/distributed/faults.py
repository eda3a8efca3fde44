"""Crashes at the n-th file operation below a folder.

Python's audit events name every file that is opened, renamed, made or removed; what is written by compiled code, and
flushing, is wrapped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.listdir", "os.scandir", "shutil.rmtree"}


class Crash(BaseException):
    """Not an Exception: nothing that handles errors may handle it."""


def halt() -> None:
    raise Crash


def die() -> None:
    os._exit(1)


class Faults:
    """Counts the file operations below ``folder``, and ends the process's work on the disk at the n-th.

    One a process: an audit hook cannot be removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.at, self.end = str(folder), 0, -1, halt
        self.active = False
        sys.addaudithook(self._audit)
        self._wrap()

    @contextmanager
    def crash(self, at: int, end: Callable[[], None] = halt) -> Iterator[None]:
        """Crash at operation ``at`` (from 0) of the block; afterwards no other operation succeeds within it."""
        self.count, self.at, self.end, self.active = 0, at, end, True
        try:
            yield
        finally:
            self.active = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event in EVENTS and str(arguments[0]).startswith(self.folder):
            self._operation()

    def _operation(self) -> None:
        self.count += 1
        if 0 <= self.at < self.count:
            self.end()

    def _wrap(self) -> None:
        import safetensors.torch
        import torch

        fsync, save, save_file = os.fsync, torch.save, safetensors.torch.save_file

        def flushed(handle: int) -> None:
            if self.active:
                self._operation()
            fsync(handle)

        def torn(writer: Any) -> Any:
            def write(value: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
                if not self.active:
                    return writer(value, path, *args, **kwargs)
                # once before anything is written, and once in the middle
                self._operation()
                result = writer(value, path, *args, **kwargs)
                if self.at == self.count:
                    os.truncate(path, os.path.getsize(path) // 2)
                self._operation()
                return result

            return write

        os.fsync, torch.save, safetensors.torch.save_file = flushed, torn(save), torn(save_file)
