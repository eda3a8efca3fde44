"""What stands on the command line of the launcher that has started this rank, where a mistake there goes unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from pretrain.signals import Ancestors
from shards.errors import ConfigError


def refuse_missing_hostfile(script: Path) -> None:
    """Refuse ``deepspeed --hostfile`` of a file that is not there, or raise `ConfigError`.

    DeepSpeed's launcher warns, and trains on this host alone. Its own default, ``/job/hostfile``, may be missing.

    Parameters
    ----------
    script : Path
        The running one: what stands behind it on the launcher's command line is for it.
    """
    ancestors = Ancestors()
    if ancestors.runner is None:
        return
    with suppress(psutil.Error):
        runner = psutil.Process(ancestors.runner)
        named = hostfile_of(runner.cmdline(), script)
        if named is None or (Path(runner.cwd()) / named).is_file():
            return
        raise ConfigError(
            "the hostfile is not there",
            where=Path(runner.cwd()) / named,
            why="DeepSpeed's launcher trains on this host alone then",
            do="correct --hostfile, or leave it out to train on this host",
        )


def hostfile_of(words: Sequence[str], script: Path) -> str | None:
    """Return the value of ``--hostfile`` on a command line of DeepSpeed's launcher, None where it is not there."""
    found: str | None = None
    for i, word in enumerate(words):
        if Path(word).name == script.name and word != words[0]:
            break
        name, equals, value = word.partition("=")
        # argparse takes an option that is cut short
        if word == "-H" or (len(name) >= len("--ho") and "--hostfile".startswith(name)):
            found = value if equals else next(iter(words[i + 1 : i + 2]), None)
        elif word.startswith("-H"):
            found = word[2:].removeprefix("=")
    return found
