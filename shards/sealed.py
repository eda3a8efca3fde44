"""A sealed folder: files, a list of their hashes, and publication by one rename.

Data sets, checkpoints and exported models are sealed folders. Files are written into a hidden
staging folder beside the target; `publish` hashes them into ``seal.json``, flushes everything to
disk and renames the folder. So a folder under its final name is complete, or it is not there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from shards.errors import MatloomError

SEAL = "seal.json"
FORMAT = "matloom-seal-1"
# what a rename onto a folder that is not empty ends in
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
# what a file system says that cannot flush a folder
NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
# how often a folder may be replaced while one looks for its seal
REPLACED = 10


def staging(target: Path) -> Path:
    """Return the staging folder of ``target``; the same for every process that writes into it.

    Where ``target`` is a link, it stands beside the folder that the link leads to.
    """
    target = target.resolve()
    return target.parent / f".{target.name}.partial"


def _aside(target: Path) -> Path:
    target = target.resolve()
    return target.parent / f".{target.name}.old"


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(target: Path) -> None:
    """Seal the staging folder of ``target`` and rename it to ``target``.

    An earlier folder at ``target`` is moved aside only once the new one is hashed and on disk; after a
    crash between the two renames `recover` puts it back. A reader may do that at any time.
    """
    target = target.resolve()
    stage, old = staging(target), _aside(target)
    files = {}
    for path in sorted(stage.rglob("*")):
        if path.is_file():
            flush(path)
            files[path.relative_to(stage).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        elif path.is_dir():
            _flush_folder(path)
    (stage / SEAL).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    flush(stage / SEAL)
    _flush_folder(stage)
    while True:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(target, old)
        try:
            os.rename(stage, target)
            break
        except OSError as error:
            # unless a reader took the gap between the renames for that of a crash
            if error.errno not in OCCUPIED:
                raise
    _flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Put the earlier folder back where a crash hit `publish` between its two renames.

    A publication that goes on at this moment is not disturbed.
    """
    if target.exists():
        return
    target, old = target.resolve(), _aside(target)
    if not old.exists():
        return
    try:
        os.rename(old, target)
    except OSError as error:
        # somebody else was faster
        if error.errno in (errno.ENOENT, *OCCUPIED):
            return
        raise MatloomError(
            "a crash left a folder under another name, and it cannot be put back",
            where=old,
            why=error.strerror,
            do=f"mv {old} {target}",
        ) from None


@contextmanager
def sealing(target: Path, *, resume: bool = False) -> Iterator[Path]:
    """Stage a new sealed folder: yields the folder to write into and publishes it without an error.

    An earlier folder at ``target`` is replaced only once the new one is complete, and only if it is a
    sealed one: a folder that this project did not write is never touched. With ``resume`` the staging
    folder still holds what an earlier try, which was killed, left in it.
    """
    recover(target)
    if target.exists() and not (target / SEAL).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise MatloomError(
            "this would replace something that is no sealed folder", where=target, do="name another folder"
        )
    stage = staging(target)
    if not resume:
        shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True, exist_ok=resume)
    yield stage
    publish(target)


def verify(
    folder: Path, *, error: type[MatloomError] = MatloomError, only: tuple[str, ...] | None = None
) -> dict[str, str]:
    """Check a sealed folder against its seal.

    Parameters
    ----------
    folder : Path
        The sealed folder.
    error : type of MatloomError
        Raised with the name of the first file that is missing, added or damaged.
    only : tuple of str, optional
        Check these files alone; every other one is left unread.

    Returns
    -------
    dict of str to str
        sha256 of every file by its relative name, as the seal gives it.
    """
    data = _seal(folder)
    if data is None:
        raise error("the folder is not sealed", where=folder, why=f"it has no {SEAL}")
    try:
        seal = json.loads(data)
        if seal["format"] != FORMAT:
            raise ValueError(f"format {seal['format']!r}, not {FORMAT}")
        hashes = {name: entry["sha256"] for name, entry in seal["files"].items()}
        sizes = {name: entry["bytes"] for name, entry in seal["files"].items()}
        if outside := [name for name in hashes if _leads_out(name)]:
            raise ValueError(f"{outside[0]!r} is no file of the folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise error("the seal is damaged", where=folder / SEAL, why=repr(problem)) from None
    if only is None:
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {SEAL}
        for name in sorted(found - set(hashes)):
            raise error("a file was added to a sealed folder", where=folder / name)
    for name in hashes if only is None else only:
        path = folder / name
        if name not in hashes:
            raise error("a file is not part of the seal", where=path)
        if not path.is_file():
            raise error("a sealed file is missing", where=path)
        if path.stat().st_size != sizes[name] or sha256(path) != hashes[name]:
            raise error("a sealed file is damaged", where=path, why="its size or sha256 differs from the seal")
    return hashes


def _seal(folder: Path) -> bytes | None:
    """Return the seal's bytes, None where there are none; a folder that is being replaced has some all the time."""
    for _ in range(REPLACED):
        recover(folder)
        with suppress(FileNotFoundError):
            return (folder / SEAL).read_bytes()
    return None


def _leads_out(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts


def flush(path: Path) -> None:
    """Write a file through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(path: Path) -> None:
    try:
        flush(path)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise
