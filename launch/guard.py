"""One way to end: users' errors without a traceback, and an exit code that means something."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from shards.errors import MatloomError


def guarded(function: Callable[[], object], *, debug: bool = False) -> int:
    """Run ``function`` and return the exit code: 0, the error's own, or 70 for what nobody foresaw."""
    try:
        function()
    except MatloomError as error:
        if debug:
            traceback.print_exc()
        print(f"matloom: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"matloom: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("  try:   the same with --debug", file=sys.stderr, flush=True)
        return MatloomError.exit_code
    return 0
