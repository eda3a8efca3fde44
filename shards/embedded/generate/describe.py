"""Texts from robocrystallographer, in a process's main thread because the time limit is a signal."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from shards.embedded.generate.packages import require
from shards.embedded.generate.relax import structure
from shards.embedded.generate.workspace import Deadline, Workspace, work

STAGE = "text"
CPU_SECONDS = 30  # the published texts were made with 15 s of wall time, on an idle machine


def describe_all(space: Workspace, names: list[str], deadline: Deadline) -> None:
    """Run the stage: ``text/<id>.json`` with the text and whether oxidation states were guessed."""
    require("pymatgen", "robocrys")
    from importlib.metadata import version

    from robocrys import StructureCondenser, StructureDescriber

    condenser, describer = StructureCondenser(), StructureDescriber()

    def compute(name: str) -> tuple[dict[str, Any], None]:
        crystal = space.read("relaxed", name)
        text, guessed = describe(crystal, condenser, describer)
        states = "oxidation states guessed" if guessed else "no oxidation states"
        return {"id": name, "text": text, "method": f"robocrys {version('robocrys')}, {states}"}, None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work(space, STAGE, names, compute, deadline)


def describe(crystal: dict[str, Any], condenser: Any, describer: Any) -> tuple[str, bool]:
    """Describe one cell: with guessed oxidation states, and if that fails or takes too long, without.

    Returns
    -------
    text
        One paragraph of English.
    guessed
        Whether it names oxidation states.

    Raises
    ------
    Exception
        Whatever robocrys raised on the second attempt (``TimeoutError`` after 30 s of processor time).
    """
    cell, frac = np.array(crystal["cell"]), np.array(crystal["frac"])
    for guess in (True, False):
        plain = structure(cell, crystal["species"], frac)
        try:
            with time_limit(CPU_SECONDS):
                if guess:
                    plain.add_oxidation_state_by_guess(max_sites=-1)
                return describer.describe(condenser.condense_structure(plain)).strip(), guess
        except Exception:
            if not guess:
                raise
    raise AssertionError("unreachable")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in the block after some seconds of processor time (POSIX, main thread).

    Processor time, because a busy machine would otherwise decide which crystals have a text.
    """

    def ring(*_: object) -> None:
        raise TimeoutError(f"{seconds} s of processor time")

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
