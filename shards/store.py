"""Where the bytes of a data set come from: a folder of this host read by mmap, or a URL (`shards.remote`)."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np

from shards.errors import DataError
from shards.manifest import ShardEntry

if TYPE_CHECKING:
    from shards.remote import RemoteOptions

# each holds a file descriptor, of which a process has few
OPEN_SHARDS = 256


class Store(Protocol):
    """Access to the files of one data set.

    Attributes
    ----------
    folder : Path
        A local folder with the manifest, the seal and the indices.
    location : str
        The data set as the user named it, without credentials; for messages.
    """

    folder: Path
    location: str

    def shard(self, entry: ShardEntry) -> memoryview | None:
        """Return a whole shard, or None where there is no room for it and it must be read in parts."""
        ...

    def part(self, entry: ShardEntry, start: int, stop: int, check: Callable[[bytes], bool]) -> bytes:
        """Return the bytes ``start`` to ``stop`` of a shard, read again where ``check`` refuses them."""
        ...

    def renew(self, entry: ShardEntry) -> bool:
        """Let go of a shard in which a member is damaged; False where it would come back the same."""
        ...

    def prefetch(self, entries: Sequence[ShardEntry], order: np.ndarray) -> None:
        """Start to fetch shards; ``order`` (M,) gives the shard (number in ``entries``) of each coming read."""
        ...

    def close(self) -> None:
        """Give back files, threads and connections; what was read stays valid."""
        ...


class LocalStore:
    """A folder on the file systems of this host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder)
        self._views: dict[str, memoryview] = {}
        self._lock = threading.Lock()

    def shard(self, entry: ShardEntry) -> memoryview:
        """Return a whole shard, mapped; its pages are read when they are looked at."""
        view = self._views.get(entry.file)
        if view is None:
            with self._lock:
                view = self._views[entry.file] = self._map(entry)
                if len(self._views) > OPEN_SHARDS:
                    del self._views[next(iter(self._views))]
        return view

    def part(self, entry: ShardEntry, start: int, stop: int, check: Callable[[bytes], bool]) -> bytes:
        """Return the bytes ``start`` to ``stop`` of a shard."""
        return bytes(self.shard(entry)[start:stop])

    def renew(self, entry: ShardEntry) -> bool:
        """Do nothing: there is one copy."""
        return False

    def prefetch(self, entries: Sequence[ShardEntry], order: np.ndarray) -> None:
        """Do nothing: the files are here."""

    def close(self) -> None:
        """Let go of the maps; each is closed once no array looks into it any more."""
        self._views.clear()

    def _map(self, entry: ShardEntry) -> memoryview:
        path = self.folder / entry.file
        if not path.is_file() or path.stat().st_size != entry.bytes:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
            raise DataError("a shard is missing or truncated", where=path, why=f"{found}, not {entry.bytes}")
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def is_url(place: Path | str) -> bool:
    """Whether a data set is named by a URL, not by a path."""
    return "://" in str(place)


def open_store(place: Path | str, options: RemoteOptions | None = None) -> Store:
    """Return the store of a folder or a URL."""
    if not is_url(place):
        return LocalStore(Path(place))
    if str(place).startswith("file://"):
        return LocalStore(Path(unquote(urlsplit(str(place)).path)))
    from shards.remote import RemoteStore

    return RemoteStore(str(place), options)
