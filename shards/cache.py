"""A cache on the disk of a node, shared by its processes, that never grows beyond its bound.

It holds whole shards under their sha256 (``shards/<sha256>.<bytes>.tar``), shards that are being fetched
(the same name and ``.partial``; they count with all the bytes that they will have), and folders with the
manifest, seal and indices of a data set (``sets/<key>.<bytes>``, beside it ``sets/<key>.lock``). The
locks are those of ``flock``, so they end with the process that holds them:

- a shared lock on a shard, or on the lock file of a set, is a *lease*: what is leased is never removed;
- an exclusive lock on a partial shard is the right to fetch it;
- an exclusive lock on ``lock`` is the right to make room.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shards.errors import DataError

PARTIAL = ".partial"
# whatever else lies in the folders is not the cache's
SHARD = re.compile(r"[0-9a-f]{64}\.(\d+)\.tar(\.partial)?")
SET = re.compile(r"(\w+)\.(\d+)(\.partial)?")
# a file takes whole blocks of the disk
DISK_BLOCK = 4096


def cache_folder() -> Path:
    """Return the folder for what can be built or fetched again: ``MATLOOM_CACHE``, or ``~/.cache/matloom``."""
    return Path(os.environ.get("MATLOOM_CACHE", Path.home() / ".cache" / "matloom"))


class NoRoomError(Exception):
    """The cache is full of what is in use."""


@dataclass(frozen=True)
class _Unit:
    """What is removed together, unless another process holds ``lock``."""

    path: Path
    lock: Path
    bytes: int
    used: float


def on_disk(size: int) -> int:
    """Return the bytes that a file of ``size`` bytes takes."""
    return -(-size // DISK_BLOCK) * DISK_BLOCK


class NodeCache:
    """The cache in a folder.

    Parameters
    ----------
    folder : Path
        On a file system of this node.
    limit_bytes : int
        What all files together may take, those that are not complete yet included.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._shards, self._sets = folder / "shards", folder / "sets"
        try:
            for path in (self._shards, self._sets):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why, do = error.strerror, "name another folder by MATLOOM_CACHE"
            raise DataError("the cache cannot be written", where=folder, why=why, do=do) from None
        # the bound may be lower than that of the run before
        with self._making_room(), suppress(NoRoomError):
            self._make_room(0)

    def lease(self, sha256: str, size: int) -> int | None:
        """Return a descriptor of a whole shard, which stays while it is open; None where the shard is not here."""
        path = self._shard(sha256, size)
        while True:
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            fcntl.flock(handle, fcntl.LOCK_SH)
            found = os.fstat(handle)
            if found.st_nlink and found.st_size == size:
                os.utime(path)
                return handle
            os.close(handle)
            if found.st_nlink:
                # cut by something outside
                self.expel(sha256, size)

    def expel(self, sha256: str, size: int) -> None:
        """Remove a shard if its bytes are damaged; those who have it mapped see the damaged bytes for as long."""
        path = self._shard(sha256, size)
        with suppress(FileNotFoundError), path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return
            with self._making_room():
                # not the one that another process has put in its place
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    path.unlink()

    def claim(self, sha256: str, size: int) -> io.BufferedRandom | None:
        """Return the partial file of a shard and with it the right to fetch it; None where someone else has that.

        Raises
        ------
        NoRoomError
            Where the cache is full of what is in use.
        """
        path = self._shard(sha256, size)
        partial = path.with_name(path.name + PARTIAL)
        with self._making_room():
            if path.exists():
                return None
            if not partial.exists():
                self._make_room(on_disk(size))
            sink = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT), "r+b")
            try:
                fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sink.close()
                return None
            return sink

    def finish(self, sink: io.BufferedRandom, sha256: str, size: int) -> int:
        """Give a fetched and verified shard its final name and return a lease of it."""
        sink.flush()
        os.fsync(sink.fileno())
        path = self._shard(sha256, size)
        with self._making_room():
            os.replace(path.with_name(path.name + PARTIAL), path)
            handle = os.dup(sink.fileno())
            fcntl.flock(handle, fcntl.LOCK_SH)
        return handle

    def discard(self, sha256: str, size: int) -> None:
        """Remove the partial file of a shard that one has claimed."""
        path = self._shard(sha256, size)
        with self._making_room():
            path.with_name(path.name + PARTIAL).unlink(missing_ok=True)

    def wait(self, sha256: str, size: int) -> None:
        """Return once nobody is fetching a shard."""
        path = self._shard(sha256, size)
        with suppress(FileNotFoundError), path.with_name(path.name + PARTIAL).open("rb") as file:
            # shared: an exclusive lock would also wait for those who read the shard afterwards
            fcntl.flock(file, fcntl.LOCK_SH)

    def open_set(self, key: str, size: int, fill: Callable[[Path], None]) -> tuple[Path, int]:
        """Return the folder of a data set's small files, filled by ``fill`` if need be, and a lease of it.

        Parameters
        ----------
        key : str
            Name in the cache.
        size : int
            Bytes on disk of what ``fill`` writes.
        fill : callable
            Writes the files into a folder; called in one process of the node, the others wait.

        Raises
        ------
        DataError
            Where they do not fit into the cache.
        """
        lock, folder = self._sets / f"{key}.lock", self._sets / f"{key}.{size}"
        while True:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH)
                if folder.is_dir() and os.fstat(handle).st_nlink:
                    os.utime(lock)
                    return folder, handle
                fcntl.flock(handle, fcntl.LOCK_EX)
                if not folder.is_dir() and os.fstat(handle).st_nlink:
                    self._fill(folder, size, fill)
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _fill(self, folder: Path, size: int, fill: Callable[[Path], None]) -> None:
        partial = folder.with_name(folder.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        with self._making_room():
            try:
                self._make_room(size)
            except NoRoomError:
                why = f"they take {size / 1e9:.3f} of {self.limit_bytes / 1e9:.3f} GB, and the rest is in use"
                do = "set MATLOOM_CACHE_GB to more"
                raise DataError("the cache has no room for the indices", where=self.folder, why=why, do=do) from None
            partial.mkdir()
        try:
            fill(partial)
        except BaseException:
            with self._making_room():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        with self._making_room():
            os.replace(partial, folder)

    def _shard(self, sha256: str, size: int) -> Path:
        return self._shards / f"{sha256}.{size}.tar"

    @contextmanager
    def _making_room(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _units(self) -> Iterator[_Unit]:
        for path in self._shards.iterdir():
            if match := SHARD.fullmatch(path.name):
                yield _Unit(path, path, on_disk(int(match[1])), path.stat().st_mtime)
        for path in self._sets.iterdir():
            if match := SET.fullmatch(path.name):
                lock = self._sets / f"{match[1]}.lock"
                yield _Unit(path, lock, int(match[2]), lock.stat().st_mtime if lock.exists() else 0.0)

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago and is not leased, or nothing where that is not enough."""
        units = sorted(self._units(), key=lambda unit: unit.used)
        excess = sum(unit.bytes for unit in units) + size - self.limit_bytes
        handles: list[int] = []
        doomed: list[_Unit] = []
        try:
            for unit in units:
                if excess <= 0:
                    break
                handle = os.open(unit.lock, os.O_RDWR | os.O_CREAT)
                handles.append(handle)
                with suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    doomed.append(unit)
                    excess -= unit.bytes
            if excess > 0:
                raise NoRoomError
            for unit in doomed:
                if unit.path != unit.lock:
                    shutil.rmtree(unit.path)
                unit.lock.unlink()
        finally:
            for handle in handles:
                os.close(handle)
