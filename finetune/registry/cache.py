"""Models that were fetched from a server: immutable sealed folders, found by the sha256 of their seal."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.registry.contents import check_contents
from finetune.registry.store import shown_uri
from shards.cache import cache_folder
from shards.errors import CheckpointError, RegistryError
from shards.sealed import SEAL, sha256

log = logging.getLogger(__name__)

FETCHING = ".fetching-"
# no download takes that long
ABANDONED_S = 7 * 24 * 3600.0
SEALS = re.compile(r"[0-9a-f]{64}")


def _models() -> Path:
    return cache_folder() / "models"


def cached(seal: str | None, *, hashed: bool = True) -> Path | None:
    """Return the folder with that seal; one that was damaged since is removed and fetched anew.

    ``hashed``: see `check_contents`.
    """
    # a tag is what somebody wrote: only what is a sha256 may name a folder that could be removed
    if seal is None or not SEALS.fullmatch(seal):
        return None
    folder = _models() / seal
    if not os.path.lexists(folder) or _sound(folder, hashed):
        return folder if folder.is_dir() else None
    with suppress(OSError), _alone():
        # another process may have replaced it already; where it is not ours to remove, `keep` says so
        if _sound(folder):
            return folder
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    return None


def _sound(folder: Path, hashed: bool = True) -> bool:
    try:
        return check_contents(folder, seal=folder.name, hashed=hashed) == folder.name
    except (CheckpointError, OSError):
        return False


@contextmanager
def _alone() -> Iterator[None]:
    """Be the only one who removes or places a model."""
    handle = os.open(_models() / "lock", os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def keep(fetch: Callable[[Path], None], *, seal: str | None) -> Path:
    """Fetch a model into a folder beside the cache, verify it, and keep it.

    Parameters
    ----------
    fetch : callable
        Writes the model's files into the folder that it gets.
    seal : str, optional
        sha256 that its seal must have.

    Raises
    ------
    RegistryError
        Where the cache cannot be written.
    CheckpointError
        Where what was fetched is not what was registered, or something else has its place in the cache.
    """
    models = _models()
    try:
        models.mkdir(parents=True, exist_ok=True)
        _clear_away(models)
        with tempfile.TemporaryDirectory(prefix=FETCHING, dir=models) as stage:
            folder = Path(stage) / "model"
            folder.mkdir()
            fetch(folder)
            found = check_contents(folder, seal=seal)
            with _alone():
                return _place(folder, models / found)
    except OSError as error:
        raise unwritable(error) from None


def _clear_away(models: Path) -> None:
    """Remove what fetches that were killed have left."""
    for path in models.glob(f"{FETCHING}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def unwritable(error: OSError) -> RegistryError:
    """Return the error for a cache that is full, or not ours."""
    return RegistryError(
        "the cache cannot be written",
        where=_models(),
        why=error.strerror or str(error),
        do="make room there, or name another folder by MATLOOM_CACHE",
    )


def _place(folder: Path, target: Path) -> Path:
    """Give a verified folder its name in the cache, readable for those who may read the cache."""
    mode = target.parent.stat().st_mode
    for path in (folder, *folder.iterdir()):
        path.chmod(mode & (0o777 if path.is_dir() else 0o666))
    try:
        os.rename(folder, target)
    except OSError as error:
        # another process was faster: what it kept is the same, if it is what was registered
        if not os.path.lexists(target):
            raise
        if not _sound(target):
            raise CheckpointError(
                "the cache holds something else in the place of this model",
                where=target,
                why=f"it cannot be replaced: {error.strerror}",
                do="have its owner remove it, or name another folder by MATLOOM_CACHE",
            ) from None
    return target


def remember(uri: str, folder: Path) -> None:
    """Note what a URI of this store was, for when the server is away."""
    note = _note(uri)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, suffix=".partial", delete=False) as partial:
            json.dump({"store": shown_uri(), "uri": uri, "seal": sha256(folder / SEAL)}, partial)
        os.chmod(partial.name, note.parent.stat().st_mode & 0o666)
        os.replace(partial.name, note)
    except OSError as error:
        log.warning("%s will not be known while the server is away: %s", uri, unwritable(error))


def last_known(uri: str, *, hashed: bool = True) -> Path | None:
    """Return the folder that a URI of this store was when it was last asked, None where it is not in the cache."""
    note = _note(uri)
    try:
        # a stranger who may write here could make a URI mean another model
        if note.lstat().st_uid not in {os.getuid(), 0, cache_folder().stat().st_uid}:
            return None
        return cached(str(json.loads(note.read_text())["seal"]), hashed=hashed)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _note(uri: str) -> Path:
    return _models() / "uris" / f"{hashlib.sha256(f'{shown_uri()} {uri}'.encode()).hexdigest()}.json"
