"""Names of embeddings: what an objective asks the model for.

``crystal`` is a modality's embedding, ``joint`` a fusion's; ``joint:crystal`` is what the fusion makes of that
modality alone; a trailing ``/2`` is the same of the second view, in which every sample is augmented anew.
"""

from __future__ import annotations

from typing import NamedTuple

SECOND = "/2"


class Name(NamedTuple):
    """The parts of an embedding's name.

    Attributes
    ----------
    base : str
        Modality or fusion.
    only : str
        The one modality that a fusion may see; empty: all.
    view : int
        0 or 1.
    """

    base: str
    only: str
    view: int


def parsed(name: str) -> Name:
    """Split a name into its parts."""
    first = name.removesuffix(SECOND)
    base, _, only = first.partition(":")
    return Name(base, only, int(first != name))


def second(name: str) -> str:
    """Name the embedding of the second view."""
    return name + SECOND


def alone(fusion: str, modality: str) -> str:
    """Name what a fusion makes of one modality alone."""
    return f"{fusion}:{modality}"
