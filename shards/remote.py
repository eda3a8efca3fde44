"""A data set behind a URL: its small files fetched once, its shards into a cache that the node shares.

Shards are fetched whole, on demand or ahead of a plan, verified, mapped, and stay in the cache until room
is needed for others. Where everything in the cache is in use, members are read by range requests.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import mmap
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.cache import NodeCache, NoRoomError, cache_folder, on_disk
from shards.errors import ConfigError, DataError
from shards.fetching import Fetcher, Patience, open_origin
from shards.manifest import MANIFEST, ShardEntry, parse_manifest
from shards.prefetch import Plan, Prefetcher
from shards.sealed import SEAL, sha256
from shards.store import OPEN_SHARDS

CACHE_GB = 64.0
INDEX_THREADS = 8
# a full cache is not asked again for room within this time
FULL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """How a URL is read.

    Attributes
    ----------
    cache_gb : float, optional
        Bound of the cache of this node, which all data sets and processes share, in 10^9 bytes. Default:
        the environment's ``MATLOOM_CACHE_GB``, or 64. It stands in the folder that ``MATLOOM_CACHE`` names.
    patience : Patience
        Time-outs and retries.
    threads : int
        Shards that are fetched ahead at once.
    """

    cache_gb: float | None = None
    patience: Patience = field(default_factory=Patience)
    threads: int = 2

    @property
    def cache_bytes(self) -> int:
        """The bound in bytes."""
        given = os.environ.get("MATLOOM_CACHE_GB", CACHE_GB) if self.cache_gb is None else self.cache_gb
        try:
            gigabytes = float(given)
        except ValueError:
            gigabytes = -1.0
        if not gigabytes >= 0:
            raise ConfigError("the bound of the cache is no number of gigabytes", where=f"MATLOOM_CACHE_GB={given}")
        return int(gigabytes * 1e9)


class RemoteStore:
    """The files of a data set behind a URL.

    Parameters
    ----------
    url : str
        Folder of the data set.
    options : RemoteOptions, optional
        How to read it.

    Raises
    ------
    DataError
        Where it cannot be reached, is no data set, or comes with wrong bytes.
    """

    def __init__(self, url: str, options: RemoteOptions | None = None) -> None:
        options = options or RemoteOptions()
        origin = open_origin(url, options.patience)
        self.location = origin.location
        self._fetcher = Fetcher(origin, options.patience)
        cache = NodeCache(cache_folder() / "remote", options.cache_bytes)
        self.folder, handle = _small_files(self._fetcher, cache)
        self._leases = _Leases(cache, self._fetcher)
        self._prefetcher = Prefetcher(self._leases.fetch_ahead, options.threads)
        self._leases.released = self._prefetcher.wake
        self._close = weakref.finalize(self, _close, self._prefetcher, self._fetcher, handle)

    def shard(self, entry: ShardEntry) -> memoryview | None:
        """Return a whole shard, or None where the cache is full of what is in use."""
        return self._leases.get(entry)

    def part(self, entry: ShardEntry, start: int, stop: int, check: Callable[[bytes], bool]) -> bytes:
        """Return the bytes ``start`` to ``stop`` of a shard, fetched again where ``check`` refuses them."""
        return self._fetcher.part(entry.file, start, stop, check)

    def renew(self, entry: ShardEntry) -> bool:
        """Let go of a shard in which a member is damaged; the cache's copy goes if the damage is there."""
        self._leases.renew(entry)
        return True

    def prefetch(self, entries: Sequence[ShardEntry], order: np.ndarray) -> None:
        """Start to fetch shards; ``order`` (M,) gives the shard (number in ``entries``) of each coming read."""
        plan = Plan.of(entries, order)
        self._leases.follow(plan)
        self._prefetcher.replace(plan)

    def close(self) -> None:
        """End the threads and connections, and give back the leases of what no array looks into."""
        self._close()
        self._leases.drop()


def _close(prefetcher: Prefetcher, fetcher: Fetcher, handle: int) -> None:
    prefetcher.end()
    fetcher.origin.close()
    prefetcher.join()
    os.close(handle)


def _small_files(fetcher: Fetcher, cache: NodeCache) -> tuple[Path, int]:
    """Return a folder with the manifest, the seal and the indices, and a lease of it."""
    seal, data = _root(fetcher)
    location = fetcher.origin.location
    manifest = parse_manifest(data, where=f"{location}/{MANIFEST}")
    try:
        sizes = {entry.index: int(json.loads(seal)["files"][entry.index]["bytes"]) for entry in manifest.shards}
        if min(sizes.values(), default=0) < 0:
            raise ValueError("an index has fewer than 0 bytes")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("the seal and the manifest do not fit", where=f"{location}/{SEAL}", why=repr(error)) from None

    def fill(folder: Path) -> None:
        """Bring what is not there, or damaged."""
        for name, content in ((SEAL, seal), (MANIFEST, data)):
            if not _holds(folder / name, hashlib.sha256(content).hexdigest()):
                with _replacing(folder / name) as file:
                    file.write(content)
        lacking = [entry for entry in manifest.shards if not _holds(folder / entry.index, entry.index_sha256)]
        with ThreadPoolExecutor(INDEX_THREADS, thread_name_prefix="indices") as pool:
            list(pool.map(lambda entry: _fetch_index(fetcher, folder, entry, sizes[entry.index]), lacking))

    total = sum(map(on_disk, (len(seal), len(data), *sizes.values())))
    key = hashlib.sha256(f"{location}\n{hashlib.sha256(data).hexdigest()}".encode()).hexdigest()[:32]
    folder, handle = cache.open_set(key, total, fill)
    try:
        fill(folder)
    except BaseException:
        os.close(handle)
        raise
    return folder, handle


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


@contextmanager
def _replacing(path: Path) -> Iterator[io.BufferedRandom]:
    """Write a file that others may be reading, or writing too."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    with partial.open("w+b") as file:
        yield file
    os.replace(partial, path)


def _root(fetcher: Fetcher) -> tuple[bytes, bytes]:
    """Return seal and manifest, fetched again where the one does not belong to the other."""
    location = fetcher.origin.location
    for _ in range(fetcher.patience.copies):
        seal, data = fetcher.whole(SEAL), fetcher.whole(MANIFEST)
        try:
            expected = json.loads(seal)["files"][MANIFEST]["sha256"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            where, why = f"{location}/{SEAL}", f"it is no seal: {error!r}"
            continue
        found = hashlib.sha256(data).hexdigest()
        if found == expected:
            return seal, data
        where, why = f"{location}/{MANIFEST}", f"sha256 {found}, expected {expected}"
    raise DataError("the manifest of a data set comes with wrong bytes", where=where, why=why)


def _fetch_index(fetcher: Fetcher, folder: Path, entry: ShardEntry, size: int) -> None:
    with _replacing(folder / entry.index) as file:
        fetcher.into(file, entry.index, size=size, sha256=entry.index_sha256)


class _Leases:
    """The whole shards that this process has open, by sha256, and with them their leases.

    A map keeps the lock of the file that it maps, so a lease lasts as long as any array looks into the
    shard. What a plan says is over, or comes latest, is let go where room is needed.
    """

    def __init__(self, cache: NodeCache, fetcher: Fetcher) -> None:
        self.cache, self.fetcher = cache, fetcher
        self.released: Callable[[], None] = lambda: None
        self._views: dict[str, memoryview] = {}
        self._started: set[str] = set()
        self._plan, self._now = Plan([], {}, {}), 0
        self._lock = threading.RLock()
        self._full_until = 0.0
        self._warned = False

    def follow(self, plan: Plan) -> None:
        """Read by another plan from now on; what it needs soon is leased again by its prefetching."""
        with self._lock:
            self._plan, self._now = plan, 0
            self._started = set()
        self.drop()

    def drop(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._views.clear()

    def renew(self, entry: ShardEntry) -> None:
        """Let go of a shard, and of the cache's copy if that is damaged."""
        with self._lock:
            self._views.pop(entry.sha256, None)
        self.cache.expel(entry.sha256, entry.bytes)

    def get(self, entry: ShardEntry) -> memoryview | None:
        """Return a shard, fetched if need be, or None where there is no room for it."""
        view = self._views.get(entry.sha256)
        if view is not None and entry.sha256 in self._started:
            return view
        self._advance(entry)
        while view is None:
            try:
                view = self._obtain(entry, None)
            except NoRoomError:
                if time.monotonic() < self._full_until:
                    return None
                if not self._let_go(entry):
                    self._full_until = time.monotonic() + FULL_S
                    self._warn(entry)
                    return None
                continue
            if view is None:
                self.cache.wait(entry.sha256, entry.bytes)
        return view

    def fetch_ahead(self, entry: ShardEntry, ended: threading.Event) -> bool:
        """Fetch a shard if it will be read; False where others do, or this process has enough of the cache."""
        with self._lock:
            if self._plan.last.get(entry.sha256, 0) < self._now:
                return True
            held = sum(len(view) for view in self._views.values())
            # the other half is for what is read without a plan, and for other data sets
            if 2 * (held + entry.bytes) > self.cache.limit_bytes or len(self._views) >= OPEN_SHARDS:
                return False
        try:
            return entry.sha256 in self._views or self._obtain(entry, ended) is not None
        except NoRoomError:
            return False

    def _obtain(self, entry: ShardEntry, ended: threading.Event | None) -> memoryview | None:
        """Return a shard from the cache or from its origin; None where another thread or process fetches it."""
        handle = self.cache.lease(entry.sha256, entry.bytes)
        if handle is None:
            if ended is None and time.monotonic() < self._full_until:
                raise NoRoomError
            sink = self.cache.claim(entry.sha256, entry.bytes)
            if sink is None:
                return None
            with sink:
                handle = self._download(sink, entry, ended)
        view = memoryview(mmap.mmap(handle, entry.bytes, access=mmap.ACCESS_READ))
        os.close(handle)
        with self._lock:
            self._views[entry.sha256] = view
        return view

    def _download(self, sink: io.BufferedRandom, entry: ShardEntry, ended: threading.Event | None) -> int:
        """Fetch a shard that this process has claimed; return a lease. What has come stays for another try."""
        try:
            self.fetcher.into(sink, entry.file, size=entry.bytes, sha256=entry.sha256, ended=ended)
            return self.cache.finish(sink, entry.sha256, entry.bytes)
        except DataError:
            if not sink.seek(0, io.SEEK_END):
                self.cache.discard(entry.sha256, entry.bytes)
            raise
        except OSError as error:
            self.cache.discard(entry.sha256, entry.bytes)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoomError from None
            where, why = self.cache.folder, error.strerror
            raise DataError("a shard cannot be written into the cache", where=where, why=why) from None

    def _advance(self, entry: ShardEntry) -> None:
        """Note that the reading of a shard begins, and let go of those whose reading is over by the plan."""
        with self._lock:
            self._started.add(entry.sha256)
            # readings come in the order of the plan, so all before the first of this shard are over
            self._now = max(self._now, self._plan.first.get(entry.sha256, 0))
            over = [sha256 for sha256 in self._views if self._plan.last.get(sha256, self._now) < self._now]
            for sha256 in over:
                del self._views[sha256]
            if over:
                self._full_until = 0.0
        if over:
            self.released()

    def _let_go(self, entry: ShardEntry) -> bool:
        """Give up a shard that is not of the plan, or comes later than ``entry`` by it; False where there is none."""
        first = self._plan.first
        now = first.get(entry.sha256, math.inf)
        with self._lock:
            spare = [
                sha256
                for sha256 in self._views
                if sha256 not in first or (sha256 not in self._started and first[sha256] > now)
            ]
            if spare:
                del self._views[max(spare, key=lambda sha256: first.get(sha256, math.inf))]
        return bool(spare)

    def _warn(self, entry: ShardEntry) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the cache {self.cache.folder} of {self.cache.limit_bytes / 1e9:g} GB is full of shards in use: "
                f"{entry.file} is read by range requests; set MATLOOM_CACHE_GB to more",
                stacklevel=2,
            )
