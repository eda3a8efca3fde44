"""Errors meant for users: what happened, where, the likely cause, and one thing to try."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MatloomError(ValueError):
    """An error that a user can act on.

    Parameters
    ----------
    what : str
        What went wrong, in one sentence.
    where : str, optional
        The file, member, rank or host.
    why : str, optional
        The likely cause.
    do : str, optional
        One command or change to try.
    """

    exit_code = 70

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        why: str | None = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.why, self.do = what, where, why, do
        lines = [what]
        lines += [f"  where: {where}"] if where is not None else []
        lines += [f"  why:   {why}"] if why else []
        lines += [f"  try:   {do}"] if do else []
        super().__init__("\n".join(lines))


class ConfigError(MatloomError):
    """A recipe, option or command line that cannot be used."""

    exit_code = 2


class DataError(MatloomError):
    """A record, shard or data set that cannot be used."""

    exit_code = 3


class CheckpointError(MatloomError):
    """A checkpoint or export that is missing, damaged or does not fit."""

    exit_code = 4


class RegistryError(MatloomError):
    """A model registry that cannot be reached or has no such model."""

    exit_code = 5


class HostError(MatloomError):
    """A host that cannot be reached, was lost, or differs from the others."""

    exit_code = 8


def suggest(word: str, options: Iterable[str]) -> str:
    """Return a hint that names the closest of ``options``, or lists them all."""
    known = sorted(options)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"
