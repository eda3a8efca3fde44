from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from shards.cache import NodeCache, NoRoomError


def name_of(letter: str) -> str:
    return hashlib.sha256(letter.encode()).hexdigest()


def put(cache: NodeCache, letter: str, size: int = 4096) -> int:
    sink = cache.claim(name_of(letter), size)
    assert sink is not None
    with sink:
        sink.write(letter.encode() * size)
        return cache.finish(sink, name_of(letter), size)


def names(cache: NodeCache) -> set[str]:
    held = {path.name.split(".")[0] for path in (cache.folder / "shards").iterdir()}
    return {letter for letter in "abcdefgh" if name_of(letter) in held}


def test_the_cache_removes_what_was_used_longest_ago_and_nothing_that_is_leased(tmp_path: Path) -> None:
    cache, other = NodeCache(tmp_path, 3 * 4096), NodeCache(tmp_path, 3 * 4096)
    leases = {letter: put(cache, letter) for letter in "abc"}
    for age, letter in enumerate("abc"):
        os.utime(tmp_path / "shards" / f"{name_of(letter)}.4096.tar", (age, age))
    with pytest.raises(NoRoomError):
        other.claim(name_of("d"), 4096)
    os.close(leases.pop("b"))
    os.close(put(other, "d"))
    assert names(cache) == {"a", "c", "d"}
    # a is older than c, until it is leased once more
    os.close(leases.pop("a"))
    os.close(leases.pop("c"))
    again = other.lease(name_of("a"), 4096)
    assert again is not None
    os.close(again)
    os.close(put(other, "e"))
    assert names(cache) == {"a", "d", "e"}
    assert cache.lease(name_of("c"), 4096) is None


def test_nothing_is_removed_where_that_would_not_be_enough(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 3 * 4096)
    held = put(cache, "a")
    os.close(put(cache, "b"))
    with pytest.raises(NoRoomError):
        cache.claim(name_of("c"), 3 * 4096)
    assert names(cache) == {"a", "b"}
    os.close(held)


def test_a_shard_that_is_being_fetched_counts_with_all_its_bytes(tmp_path: Path) -> None:
    cache, other = NodeCache(tmp_path, 5 * 4096), NodeCache(tmp_path, 5 * 4096)
    sink = cache.claim(name_of("a"), 3 * 4096)
    assert sink is not None
    assert other.claim(name_of("a"), 3 * 4096) is None
    with pytest.raises(NoRoomError):
        other.claim(name_of("b"), 3 * 4096)
    sink.write(b"half")
    sink.close()
    # its process is gone: the same shard is gone on with, another one takes its room
    resumed = other.claim(name_of("a"), 3 * 4096)
    assert resumed is not None
    assert resumed.read() == b"half"
    resumed.close()
    os.close(put(other, "b", 3 * 4096))
    assert names(cache) == {"b"}


def test_a_lower_bound_is_kept_from_the_start(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 4 * 4096)
    for letter in "abcd":
        os.close(put(cache, letter))
    NodeCache(tmp_path, 4096)
    assert len(names(cache)) == 1


def test_who_waits_for_a_shard_gets_it_when_it_is_there(tmp_path: Path) -> None:
    cache, found = NodeCache(tmp_path, 1 << 20), []
    sink = cache.claim(name_of("a"), 4096)
    assert sink is not None

    def wait() -> None:
        other = NodeCache(tmp_path, 1 << 20)
        while not found:
            handle = other.lease(name_of("a"), 4096)
            if handle is None:
                other.wait(name_of("a"), 4096)
            else:
                found.append(handle)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    with sink:
        sink.write(bytes(4096))
        found_here = cache.finish(sink, name_of("a"), 4096)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    for handle in (*found, found_here):
        os.close(handle)


def test_what_is_not_of_the_cache_is_left_alone(tmp_path: Path) -> None:
    """A network file system leaves such files where something that is open was removed."""
    cache = NodeCache(tmp_path, 2 * 4096)
    strangers = [tmp_path / folder / ".nfs000000000042" for folder in ("shards", "sets")]
    for stranger in strangers:
        stranger.touch()
    for letter in "abc":
        os.close(put(cache, letter))
    assert names(cache) == {"b", "c"} and all(stranger.exists() for stranger in strangers)


def test_a_shard_is_expelled_only_if_it_is_damaged(tmp_path: Path) -> None:
    cache, content = NodeCache(tmp_path, 1 << 20), b"a" * 4096
    sha256 = hashlib.sha256(content).hexdigest()
    sink = cache.claim(sha256, 4096)
    assert sink is not None
    with sink:
        sink.write(content)
        os.close(cache.finish(sink, sha256, 4096))
    path = tmp_path / "shards" / f"{sha256}.4096.tar"
    cache.expel(sha256, 4096)
    assert path.exists()
    for bad in (b"b" + content[1:], content[1:]):
        path.write_bytes(bad)
        cache.expel(sha256, 4096)
        assert not path.exists()
    cache.expel(sha256, 4096)
    path.write_bytes(content[1:])
    assert cache.lease(sha256, 4096) is None and not path.exists()
