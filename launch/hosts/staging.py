"""The recipe's data on each host's own disk, before any rank starts: ``python -m launch.hosts.staging``.

The request is one JSON line on standard input, so that no URL with a signature stands on a command line; what happens
is told in JSON lines. The process ends with its standard input: whoever asked for the data is gone then. What it has
brought stays, and the next one goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.hosts.trouble import explained
from shards.errors import DataError, HostError, MatloomError
from shards.staged import EMBEDDED, STAGE, copy_in
from shards.urls import without_secrets

if TYPE_CHECKING:
    from launch.hosts.hostfile import Host
    from launch.hosts.remote import Remote
    from pretrain.config import DataConfig, Recipe

Say = Callable[[dict[str, Any]], None]
# a line of progress each
STEPS = 10


def stage(
    remote: Remote,
    hosts: Sequence[Host],
    recipe: Recipe,
    folder: Path,
    report: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Bring every data set of a recipe to the disk of every host, all hosts at once.

    Parameters
    ----------
    remote : Remote
        Reaches the hosts.
    hosts : sequence of Host
        Where to.
    recipe : Recipe
        Its ``[data]`` names folders that all hosts see, URLs, or embedded sets.
    folder : Path
        On each host's own disk.
    report : callable
        Gets a line now and then.
    environment : mapping of str to str, optional
        Variables for reading URLs, credentials for example.

    Returns
    -------
    dict of str to str
        Variables by which the ranks find the copies; the recipe and the identity of the data stay as they are.

    Raises
    ------
    DataError
        Where all hosts say so: there is no such data set, it is damaged, or no disk has room.
    HostError
        Where some of the hosts cannot have it.
    """
    request = {"places": places(recipe.data), "folder": str(folder), "environment": dict(environment or {})}
    processes = [remote.popen(host.name, "launch.hosts.staging") for host in hosts]
    with ThreadPoolExecutor(len(hosts)) as pool:
        try:
            errors = list(pool.map(lambda host, process: _ask(process, host.name, request, report), hosts, processes))
        except BaseException:
            # somebody asks to end: nobody is waited for
            for process in processes:
                process.kill()
            raise
    failed = [(host.name, error) for host, error in zip(hosts, errors, strict=True) if error is not None]
    if failed:
        kind = (
            DataError if len(failed) == len(hosts) and all(isinstance(e, DataError) for _, e in failed) else HostError
        )
        name, first = failed[0]
        others = f", and {len(failed) - 1} more hosts" if len(failed) > 1 else ""
        where = f"{name}{others}" + (f": {first.where}" if first.where and first.where != name else "")
        raise kind(f"the data cannot be staged: {first.what}", where=where, why=first.why, do=first.do)
    return {STAGE: str(folder)}


def places(data: DataConfig) -> list[str]:
    """Return all data sets of a recipe, each once."""
    sets = data.mix or (data,)
    return list(dict.fromkeys(str(place) for one in sets for place in (one.path, *one.overlays)))


def _ask(
    process: subprocess.Popen[str], host: str, request: dict[str, Any], report: Callable[[str], None]
) -> MatloomError | None:
    """Stage on one host; returns what went wrong."""
    assert process.stdin and process.stdout and process.stderr
    complaints: list[str] = []
    reader = threading.Thread(target=lambda stream: complaints.extend(stream), args=(process.stderr,), daemon=True)
    reader.start()
    answer: dict[str, Any] = {}
    try:
        with suppress(OSError):
            process.stdin.write(json.dumps(request) + "\n")
        for line in process.stdout:
            # a shell there may have a greeting of its own
            with suppress(ValueError):
                answer = json.loads(line)
                answer = answer if isinstance(answer, dict) else {}
                if "said" in answer:
                    report(f"{host}: {answer['said']}")
        process.wait()
        reader.join()
    finally:
        process.kill()
        with suppress(OSError):
            process.stdin.close()
    if "failed" in answer:
        kind = DataError if answer["code"] == DataError.exit_code else HostError
        return kind(**answer["failed"])
    return None if answer.get("done") else explained(host, process.returncode, [line.rstrip() for line in complaints])


def bring(named: Sequence[str], folder: Path, say: Say) -> None:
    """Make verified copies of data sets in a folder of this host; one process at a time, the others wait for it.

    Parameters
    ----------
    named : sequence of str
        Folders, URLs, or ``embedded:NAME``.
    folder : Path
        Made where it is not there yet.
    say : callable
        Gets ``{"said": TEXT}`` now and then.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        say({"said": f"another run is staging in {folder}; waiting for it"})
        held = lock.acquire()
    with held:
        _check_room(named, folder)
        for place in named:
            _bring_one(place, copy_in(folder, place), say)


def _check_room(named: Sequence[str], folder: Path) -> None:
    """Raise `DataError` where the disk has no room for all of what is still missing."""
    from shards.fetch import bytes_to_fetch

    needed = sum(bytes_to_fetch(place, copy_in(folder, place)) for place in named if not _embedded(place))
    free = shutil.disk_usage(folder).free
    if needed > free:
        why = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        raise DataError("the disk has no room for the data", where=folder, why=why, do="name another folder by --stage")


def _bring_one(place: str, copy: Path, say: Say) -> None:
    from shards.fetch import bytes_to_fetch, fetch_dataset
    from shards.locate import build_embedded
    from shards.manifest import read_manifest
    from shards.sealed import verify

    name = without_secrets(place) if "://" in place else place
    with suppress(DataError):
        if (_embedded(place) or not bytes_to_fetch(place, copy)) and verify(copy, error=DataError):
            # not published anew: another run may be reading it
            say({"said": f"{name} is there, verified"})
            return
    if _embedded(place):
        say({"said": f"{name} is being built"})
        build_embedded(place.removeprefix(EMBEDDED), copy)
        return
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        step = done * STEPS // max(total, 1)
        if step > told:
            told = step
            say({"said": f"{name}: {done / 1e6:.1f} of {total / 1e6:.1f} MB"})

    fetch_dataset(place, copy, progress=progress)
    say({"said": f"{name}: {read_manifest(copy).samples} samples, verified, in {copy}"})


def _embedded(place: str) -> bool:
    return place.startswith(EMBEDDED)


def main() -> int:
    """Stage what standard input asks for, and end with it."""
    # whatever libraries print must not get between the lines
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    os.environ.update(request["environment"])
    threading.Thread(target=_end_with_input, daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        bring(request["places"], Path(request["folder"]), say)
    except MatloomError as error:
        parts = {"what": error.what, "where": _text(error.where), "why": error.why, "do": error.do}
        say({"failed": parts, "code": error.exit_code})
        return error.exit_code
    except OSError as error:
        say(
            {
                "failed": {"what": f"the folder cannot be written: {error.strerror}", "where": request["folder"]},
                "code": 8,
            }
        )
        return HostError.exit_code
    say({"done": True})
    return 0


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # the thread that watches standard input would hold its lock at the end of the interpreter
    os._exit(code)
