"""Models that were fetched from a server: immutable sealed folders, found by the sha256 of their seal."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from finetune.registry.contents import check_contents
from finetune.registry.store import shown_uri
from shards.cache import cache_folder
from shards.errors import CheckpointError
from shards.sealed import SEAL, sha256

SEALS = re.compile(r"[0-9a-f]{64}")


def _models() -> Path:
    return cache_folder() / "models"


def cached(seal: str | None) -> Path | None:
    """Return the folder with that seal; one that was damaged since is removed and fetched anew."""
    # a tag is what somebody wrote: only what is a sha256 may name a folder that could be removed
    if seal is None or not SEALS.fullmatch(seal):
        return None
    folder = _models() / seal
    if not folder.is_dir():
        return None
    try:
        check_contents(folder, seal=seal)
    except CheckpointError:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder


def keep(fetch: Callable[[Path], Path], *, seal: str | None) -> Path:
    """Fetch a model into a folder beside the cache, verify it, and keep it.

    Parameters
    ----------
    fetch : callable
        Downloads into the folder that it gets, and returns where the model lies.
    seal : str, optional
        sha256 that its seal must have.
    """
    models = _models()
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=models) as stage:
        folder = fetch(Path(stage))
        target = models / check_contents(folder, seal=seal)
        try:
            os.rename(folder, target)
        except OSError:
            # another process was faster; what it kept is the same
            if not (target / SEAL).is_file():
                raise
    return target


def remember(uri: str, folder: Path) -> None:
    """Note what a URI of this store was, for when the server is away."""
    note = _note(uri)
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({"store": shown_uri(), "uri": uri, "seal": sha256(folder / SEAL)}))
    os.replace(partial, note)


def last_known(uri: str) -> Path | None:
    """Return the folder that a URI of this store was when it was last asked, None where it is not in the cache."""
    try:
        return cached(str(json.loads(_note(uri).read_text())["seal"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(uri: str) -> Path:
    return _models() / "uris" / f"{hashlib.sha256(f'{shown_uri()} {uri}'.encode()).hexdigest()}.json"
