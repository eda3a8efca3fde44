"""Copies of data sets on a node's own disk, which are read in place of those that a recipe names.

MATLOOM_STAGE names the folder. The recipe, what is recorded of the run and the identity of the data stay as they are:
a copy is the same data set, byte for byte. One of a folder that has other data by now, or is gone, is passed over: the
recipe says what is read. A URL is not asked again.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from shards.manifest import MANIFEST
from shards.urls import without_secrets

STAGE = "MATLOOM_STAGE"
EMBEDDED = "embedded:"


def copy_in(folder: Path, place: str) -> Path:
    """Return where the copy of a data set stands: the same for every user, query or password of a URL.

    That of an embedded set is another one after an upgrade that changes what is built.

    Parameters
    ----------
    folder : Path
        Of the copies.
    place : str
        A folder, a URL, or ``embedded:NAME``.
    """
    if place.startswith(EMBEDDED):
        # much to import, and few need it
        from shards.edition import edition

        return folder / edition(place.removeprefix(EMBEDDED))
    named = without_secrets(place) if "://" in place else place
    # a relative path means the same folder from the same working directory alone
    whole = named if "://" in named else os.path.abspath(named)
    last = re.sub(r"[^\w.-]+", "-", whole.rstrip("/").rpartition("/")[2])[:80]
    return folder / f"{last}-{hashlib.sha256(whole.encode(errors='surrogateescape')).hexdigest()[:16]}"


def staged(place: str) -> Path | None:
    """Return the copy of a data set on this node's disk, None where there is none."""
    folder = os.environ.get(STAGE)
    if not folder:
        return None
    copy = copy_in(Path(folder), place)
    return copy if (copy / MANIFEST).is_file() and _is_current(copy, place) else None


def _is_current(copy: Path, place: str) -> bool:
    if "://" in place or place.startswith(EMBEDDED):
        return True
    try:
        return (Path(place) / MANIFEST).read_bytes() == (copy / MANIFEST).read_bytes()
    except OSError:
        return False
