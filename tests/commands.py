"""The command line in a process of its own that has imported already what costs seconds."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.distributed.ranks import apart


def matloom(*arguments: object, folder: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run a command in a folder; exit code, stdout and stderr."""
    return apart(_command, [str(part) for part in arguments], str(folder), dict(environment or {}))


def _command(arguments: list[str], folder: str, environment: dict[str, str]) -> tuple[int, str, str]:
    from launch.cli import main

    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["matloom", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), told.getvalue(), errors.getvalue()
    raise AssertionError("the command line ends by an exit code")
