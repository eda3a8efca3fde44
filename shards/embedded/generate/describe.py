"""Texts from robocrystallographer, in a process's main thread because the time limit is a signal."""

from __future__ import annotations

from typing import Any

from shards.embedded.generate.packages import require
from shards.embedded.generate.workspace import Deadline, Workspace, work
from shards.features.robocrys import SECONDS, describe

STAGE = "text"


def describe_all(space: Workspace, names: list[str], deadline: Deadline) -> None:
    """Run the stage: ``text/<id>.json`` with the text and whether oxidation states were guessed.

    The published texts were made with 15 s of wall time on an idle machine; a busy one must not decide which
    crystals have a text, so that now the limit is one of processor time.
    """
    require("pymatgen", "robocrys")
    from importlib.metadata import version

    def compute(name: str) -> tuple[dict[str, Any], None]:
        found = describe(space.read("relaxed", name), SECONDS)
        if not found["text"]:
            raise ValueError(f"{found['outcome']}: {found['reason']}")
        states = "oxidation states guessed" if found["outcome"] == "guessed" else "no oxidation states"
        return {"id": name, "text": found["text"], "method": f"robocrys {version('robocrys')}, {states}"}, None

    work(space, STAGE, names, compute, deadline)
