"""A crystal described in words by robocrystallographer, within a limit of processor time, kept on disk.

Ganose and Jain, MRS Communications 9, 874 (2019). A description takes from a second to minutes, so each is
written into the cache once: ``MATLOOM_CACHE/robocrys``, 1 kB a crystal, free to be deleted.

robocrystallographer lists some things in the order of a set of strings ("corner and edge-sharing"), which
differs from process to process. So crystals are described in helper processes whose hashes are fixed,
and the same crystal has the same text in every build.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xxhash
from pydantic import Field

from shards.errors import ConfigError, DataError
from shards.features.base import FEATURES, Feature
from shards.schema import Kind, ModalitySpec, Value
from shards.sources.base import Record, Source

if TYPE_CHECKING:
    from pymatgen.core import Structure

SECONDS = 30.0
FORMAT = "robocrys-2"


class _OutOfTime(BaseException):
    """Not an Exception: robocrys and its libraries catch those."""


@FEATURES.register("robocrys")
class RobocrysFeature(Feature):
    """Structure -> an English paragraph on its mineral type, symmetry and bonding.

    Oxidation states are guessed first; where that fails or takes too long, the text has none. The limit is
    one of processor time, not of the clock, so that a busy machine does not decide which crystals have
    a text; a crystal that needs just that long may still have one on one machine and none on another.

    Attributes
    ----------
    seconds : float
        Processor time for each of the two attempts.
    on_timeout : str
        What becomes of a crystal that takes longer: its text is ``absent`` (a warning names it, and the
        coverage counts it), or the record is put into ``quarantine``.
    on_failure : str
        The same for a crystal that robocrystallographer cannot describe.
    """

    kind: ClassVar[Kind] = "text"
    step: Literal["robocrys"] = "robocrys"
    seconds: float = Field(SECONDS, gt=0.0)
    on_timeout: Literal["absent", "quarantine"] = "absent"
    on_failure: Literal["absent", "quarantine"] = "quarantine"

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a text."""
        return ModalitySpec(name=name, kind=self.kind, feature=self.model_dump())

    def fitted(self, source: Source) -> Feature:
        """Return the step itself; refuse a build where robocrystallographer is not installed."""
        _version()
        return self

    def __call__(self, record: Record) -> Value | None:
        """Return the description, or None without a structure."""
        if record.structure is None:
            return None
        found = cached(record.structure, self.seconds)
        if found["text"]:
            return found["text"]
        slow = found["outcome"] == "timeout"
        what = f"takes more than {self.seconds:g} s to describe" if slow else "cannot be described"
        if (self.on_timeout if slow else self.on_failure) == "quarantine":
            raise DataError(
                f"the crystal {what}",
                where=record.id,
                why=found["reason"],
                do=f"set {'on_timeout' if slow else 'on_failure'} = 'absent' to go without its text",
            )
        logging.getLogger(__name__).warning("%s %s: its text is absent (%s)", record.id, what, found["reason"])
        return None


def cached(structure: Structure, seconds: float) -> dict[str, str]:
    """Return ``text``, ``outcome`` and ``reason`` of a description, from the cache or into it.

    Any number of processes may ask at once: a file of the cache is written at once or not at all, and one that
    is damaged is written anew. That a helper died is not kept: want of memory or a kill may have been the cause.
    """
    from shards.cache import cache_folder

    if not structure.is_ordered:
        return {"text": "", "outcome": "failure", "reason": "a site holds several elements"}
    plain = _plain(structure)
    key = xxhash.xxh3_128_hexdigest(json.dumps([FORMAT, _version(), version("pymatgen"), seconds, plain]).encode())
    path = cache_folder() / "robocrys" / key[:2] / f"{key}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(path.read_text())
        if found["key"] == key:
            return found
    answer = _helper().ask(plain, seconds)
    if answer is None:
        return {"text": "", "outcome": "timeout", "reason": "the process that described it died or hung"}
    _write(path, json.dumps({"key": key, **answer}))
    return answer


def describe(plain: dict[str, Any], seconds: float) -> dict[str, str]:
    """Describe one cell: with guessed oxidation states, and if that fails or takes too long, without.

    Which of two words comes first depends on the process's ``PYTHONHASHSEED``; `cached` fixes it.

    Parameters
    ----------
    plain : dict
        ``cell`` (3, 3) rows in Angstrom, ``species`` and ``frac`` (n, 3).
    seconds : float
        Processor time for each attempt. In a process's main thread, as the limit is a signal.

    Returns
    -------
    dict of str to str
        ``outcome``: ``guessed`` or ``plain``, with a ``text``; else ``timeout`` or ``failure``, with a ``reason``.
    """
    from pymatgen.core import Lattice, Structure

    condenser, describer = _robocrys()
    outcome, reason = "failure", ""
    for guess in (True, False):
        try:
            structure = Structure(Lattice(plain["cell"]), plain["species"], plain["frac"])
            with warnings.catch_warnings(), time_limit(seconds):
                warnings.simplefilter("ignore")
                if guess:
                    structure.add_oxidation_state_by_guess(max_sites=-1)
                text = describer.describe(condenser.condense_structure(structure)).strip()
            if text:
                return {"text": text, "outcome": "guessed" if guess else "plain", "reason": ""}
            outcome, reason = "failure", "the description is empty"
        except TimeoutError as error:
            outcome, reason = "timeout", str(error)
        except Exception as error:  # it raises whatever the first surprise in a structure causes
            outcome, reason = "failure", repr(error)[:300]
    return {"text": "", "outcome": outcome, "reason": reason}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` after some seconds of processor time in the block (POSIX, main thread)."""

    def ring(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGVTALRM, ring)
    # again and again, as a bare except may swallow the first one
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
    try:
        yield
    except _OutOfTime:
        raise TimeoutError(f"{seconds:g} s of processor time") from None
    finally:
        _disarm(before)


def _disarm(before: Any) -> None:
    """Stop the clock, which may ring once more while that is done."""
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    except _OutOfTime:
        _disarm(before)


def _plain(structure: Structure) -> dict[str, Any]:
    """Return an ordered structure as lists of numbers and symbols, without charges."""
    return {
        "cell": np.asarray(structure.lattice.matrix).tolist(),
        "species": [site.species.elements[0].symbol for site in structure],
        "frac": np.asarray(structure.frac_coords).tolist(),
    }


class _Helper:
    """A process that describes; one a thread that asks."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, plain: dict[str, Any], seconds: float) -> dict[str, str] | None:
        """Return what `describe` says of one cell, None where the process dies or hangs over it."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-m", "shards.features.robocrys"]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        # the limit is the process's own; this one is for code that no signal interrupts
        watch = threading.Timer(20 * seconds + 300, self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps([plain, seconds]) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.end()
            return None
        except BaseException:
            # whoever asks next must not get the answer to this question
            self.end()
            raise
        finally:
            watch.cancel()

    def end(self) -> None:
        """Kill the process; the next question starts another."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


_helpers = threading.local()


def _helper() -> _Helper:
    if not hasattr(_helpers, "helper"):
        _helpers.helper = _Helper()
    return _helpers.helper


def _version() -> str:
    try:
        return version("robocrys")
    except ImportError as error:
        raise ConfigError(
            "robocrystallographer is not installed", why=str(error), do="pip install 'matloom[materials]'"
        ) from None


@lru_cache(maxsize=1)
def _robocrys() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from robocrys import StructureCondenser, StructureDescriber

        return StructureCondenser(), StructureDescriber()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(name, path)


def main() -> None:
    """Answer each line of standard input, a cell and a limit, by a line with its description, until it ends."""
    # Ctrl-C is for whoever asks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    questions = queue.SimpleQueue[str]()

    def listen() -> None:
        for line in sys.stdin:
            questions.put(line)
        # nobody is left who would read an answer, even if one is under way
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    # what libraries print must not stand between the answers
    answers, sys.stdout = sys.stdout, sys.stderr
    while True:
        plain, seconds = json.loads(questions.get())
        answers.write(json.dumps(describe(plain, seconds)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
