"""One way to end: users' errors without a traceback, and an exit code that means something."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shards.errors import MatloomError
from shards.quoting import printable

WORDS = ("what", "where", "why", "do")


def guarded(function: Callable[[], object], *, debug: bool = False) -> int:
    """Run ``function`` and return the exit code: 0, the error's own, or 70 for what nobody foresaw.

    What all ranks find out alike (``on_all_ranks``), the first one says. No secret of the environment is said.
    """
    try:
        function()
    except MatloomError as error:
        if debug:
            print(_without_secrets(traceback.format_exc()), file=sys.stderr, end="")
        if os.environ.get("RANK", "0") == "0" or not getattr(error, "on_all_ranks", False):
            print(f"matloom: {printable(_without_secrets(error), lines=True, most=0)}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:
        if debug:
            print(_without_secrets(traceback.format_exc()), file=sys.stderr, end="")
        told = printable(_without_secrets(error), lines=True, most=0)
        print(f"matloom: internal error: {type(error).__name__}: {told}", file=sys.stderr)
        print("  try:   the same with --debug", file=sys.stderr, flush=True)
        return MatloomError.exit_code
    return 0


@contextmanager
def hiding(redact: Callable[[str], str]) -> Iterator[None]:
    """Take secrets out of users' errors that are not in this process's environment."""
    try:
        yield
    except MatloomError as error:
        words = {name: redact(str(value)) for name, value in vars(error).items() if name in WORDS and value is not None}
        raise type(error)(words.pop("what"), **words) from None


def _without_secrets(text: object) -> str:
    from launch.hosts.redaction import Redactor

    return Redactor(os.environ)(str(text))


def leave(code: int) -> None:
    """End this process; after an error at once, without waiting for threads that may wait for a server for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        # NCCL keeps the resources of a group that nobody destroys
        distributed.destroy_process_group()
    sys.exit(0)
