"""A local, verified copy of a data set, from a URL or a folder; a fetch that was cut off goes on where it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.build import alone
from shards.errors import DataError
from shards.fetching import Fetcher, Patience, open_origin
from shards.manifest import FILE_NAME, MANIFEST, Manifest, read_manifest
from shards.sealed import FORMAT, SEAL, sealing, sha256, staging, verify
from shards.store import is_url

# files of a data set that are fetched at once
CONNECTIONS = 4
Files = dict[str, tuple[int, str]]


def fetch_dataset(
    place: Path | str,
    out: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    patience: Patience | None = None,
) -> Manifest:
    """Copy a data set and publish it as a sealed folder once every file has the sha256 of the seal.

    Files that an earlier try brought whole, or that an earlier data set at ``out`` has as well, are not
    fetched again; one that broke off goes on at its last byte.

    Parameters
    ----------
    place : Path or str
        A folder, or a URL (``http``, ``https``, ``s3``, any of fsspec's).
    out : Path
        Target folder; an earlier data set is replaced when the copy is complete.
    progress : callable, optional
        Called with the bytes that are here and the bytes in all, after each file.
    patience : Patience, optional
        When to give up.

    Returns
    -------
    Manifest
        Of the copy.

    Raises
    ------
    DataError
        Where there is no sealed data set, a file cannot be had or has wrong bytes every time, the disk has no
        room, or another process writes ``out``.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _opened(place, patience or Patience()) as (fetcher, files), alone(out), sealing(out, resume=True) as stage:
        for path in stage.iterdir():
            if path.name not in files:
                path.unlink()
        _reuse(out, stage, files)
        _check_room(stage, files)
        _fetch(fetcher, stage, files, progress)
        manifest = read_manifest(stage)
        _check_complete(manifest, files, fetcher.origin.location)
    return manifest


def bytes_to_fetch(place: Path | str, out: Path, *, patience: Patience | None = None) -> int:
    """Return the bytes of a data set that neither ``out`` nor what an earlier try left beside it has.

    Raises
    ------
    DataError
        Where there is no sealed data set at ``place``.
    """
    here: dict[str, str] = {}
    with suppress(DataError):
        here = verify(out, error=DataError, only=())
    partial = staging(out)
    missing = 0
    with _opened(place, patience or Patience()) as (_, files):
        for name, (size, digest) in files.items():
            if here.get(name) != digest or not (out / name).is_file():
                begun = partial / name
                missing += size - min(size, begun.stat().st_size if begun.is_file() else 0)
    return missing


@contextmanager
def _opened(place: Path | str, patience: Patience) -> Iterator[tuple[Fetcher, Files]]:
    """Read the seal of a data set."""
    # not as_uri, whose %XX fsspec would take for characters of the name
    origin = open_origin(str(place) if is_url(place) else f"file://{Path(place).resolve()}", patience)
    try:
        fetcher = Fetcher(origin, patience)
        yield fetcher, _sealed_files(fetcher.whole(SEAL), f"{origin.location}/{SEAL}")
    finally:
        origin.close()


def _sealed_files(data: bytes, where: str) -> Files:
    """Return size and sha256 of each file of a seal; every name is one of a file in the folder itself."""
    try:
        seal = json.loads(data)
        if seal["format"] != FORMAT:
            raise ValueError(f"format {seal['format']!r}, not {FORMAT}")
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in seal["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError("the seal is damaged", where=where, why=repr(error)) from None
    for name in files:
        if not re.fullmatch(FILE_NAME, name):
            raise DataError("the seal names a file that no data set has", where=where, why=repr(name))
    if MANIFEST not in files:
        raise DataError("this is no data set", where=where, why=f"its seal has no {MANIFEST}")
    return files


def _reuse(out: Path, stage: Path, files: Files) -> None:
    """Take the files that the earlier data set at ``out`` has with the same bytes."""
    with suppress(DataError):
        for name, digest in verify(out, error=DataError, only=()).items():
            same = name in files and digest == files[name][1] and not (stage / name).exists()
            # what is linked is never written to: it is linked only if it is whole
            if same and (out / name).is_file() and sha256(out / name) == digest:
                link_or_copy(out / name, stage / name)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _check_room(stage: Path, files: Files) -> None:
    here = sum(path.stat().st_size for path in stage.iterdir())
    needed, free = sum(size for size, _ in files.values()) - here, shutil.disk_usage(stage).free
    if needed > free:
        raise DataError(
            "the disk has no room for the copy",
            where=stage.parent,
            why=f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
        )


def _fetch(fetcher: Fetcher, stage: Path, files: Files, progress: Callable[[int, int], None] | None) -> None:
    """Bring every file whole and verified into ``stage``."""
    ended, done = threading.Event(), 0
    total = sum(size for size, _ in files.values())

    def fetch(name: str) -> int:
        size, digest = files[name]
        with (stage / name).open("a+b") as sink:
            fetcher.into(sink, name, size=size, sha256=digest, ended=ended)
        return size

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        futures = [pool.submit(fetch, name) for name in files]
        try:
            for future in as_completed(futures):
                done += future.result()
                if progress is not None:
                    progress(done, total)
        except BaseException:
            ended.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _check_complete(manifest: Manifest, files: Files, location: str) -> None:
    """Raise `DataError` unless manifest and seal speak of the same files."""
    named = {MANIFEST: files[MANIFEST][1]}
    for entry in manifest.shards:
        named |= {entry.file: entry.sha256, entry.index: entry.index_sha256}
    if named != {name: digest for name, (_, digest) in files.items()}:
        raise DataError("the manifest and the seal of a data set contradict each other", where=location)
