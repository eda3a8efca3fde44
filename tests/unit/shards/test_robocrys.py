"""Descriptions by robocrystallographer: the embedded texts again, the limit of time, the cache, threads."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from shards.errors import ConfigError, DataError
from shards.features import feature, robocrys
from shards.features.robocrys import time_limit
from shards.sources.base import Record
from shards.sources.embedded import EmbeddedSource, embedded_records

CSCL = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def record(structure: Structure | None = CSCL) -> Record:
    return Record(id="CsCl", structure=structure)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path))
    return tmp_path / "robocrys"


@pytest.fixture(scope="module")
def text() -> str:
    """The description of CsCl; the helper that made it serves all tests, as its start takes ten seconds."""
    answer = robocrys._helper().ask(robocrys._plain(CSCL), 60.0)
    assert answer is not None
    return answer["text"]


@pytest.mark.parametrize("count", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_the_embedded_texts_are_made_again(count: int) -> None:
    described = [found for found in embedded_records() if found.text]
    step = feature({"step": "robocrys"})
    for found in described[:: len(described) // count][:count]:
        assert step(Record(id=found.id, structure=found.structure)) == found.text


def test_a_description_is_written_once(text: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = feature({"step": "robocrys"})
    assert step(record(None)) is None and not cache.exists()
    assert step(record()) == text and "CsCl" in text
    files = list(cache.rglob("*.json"))
    assert len(files) == 1
    charged = CSCL.copy()
    charged.add_oxidation_state_by_element({"Cs": 1, "Cl": -1})
    computed = []

    class Counting:
        def ask(self, *_: object) -> dict[str, str]:
            computed.append(1)
            return {"text": "again", "outcome": "guessed"}

    monkeypatch.setattr(robocrys, "_helper", Counting)
    # the same atoms, whatever they are decorated with
    assert step(record()) == step(record(charged)) == text and not computed
    moved = CSCL.copy()
    moved.scale_lattice(CSCL.volume * (1 + 1e-12))
    assert step(record(moved)) == "again" and feature({"step": "robocrys", "seconds": 7})(record()) == "again"
    for damage in (b"", b"{", b'{"key": "x", "text": "forged"}', b"\xff", b"[1]"):
        files[0].write_bytes(damage)
        assert step(record()) == "again"
    assert len(computed) == 7 and not list(cache.rglob("*.partial"))


def test_what_takes_too_long_is_absent_or_quarantined(text: str, caplog: pytest.LogCaptureFixture) -> None:
    options = {"step": "robocrys", "seconds": 0.02}
    with caplog.at_level(logging.WARNING):
        assert feature(options)(record()) is None
    assert "CsCl takes more than 0.02 s" in caplog.text
    with pytest.raises(DataError, match=r"more than 0\.02 s") as caught:
        feature({**options, "on_timeout": "quarantine"})(record())
    assert caught.value.where == "CsCl" and "absent" in str(caught.value)


def test_what_cannot_be_described_is_quarantined_or_absent(text: str) -> None:
    dummy = record(Structure(CSCL.lattice, ["Cs", "X"], CSCL.frac_coords))
    mixed = record(Structure(CSCL.lattice, ["Cs", {"Cl": 0.5, "Br": 0.5}], CSCL.frac_coords))
    for broken, reason in ((dummy, "AttributeError"), (mixed, "several elements")):
        with pytest.raises(DataError, match="cannot be described") as caught:
            feature({"step": "robocrys"})(broken)
        assert reason in str(caught.value)
        assert feature({"step": "robocrys", "on_failure": "absent"})(broken) is None
    assert robocrys._helper().ask(robocrys._plain(CSCL), 60.0) is not None


def test_the_limit_of_time_cannot_be_caught_in_passing() -> None:
    def swallow() -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:
                pytest.fail("the limit is no Exception")

    def bare() -> None:
        caught = 0
        while caught < 1:
            try:
                swallow()
            except BaseException:
                caught += 1
        swallow()

    for block in (swallow, bare):
        with pytest.raises(TimeoutError, match=r"0\.05 s"), time_limit(0.05):
            block()
    # the clock is stopped, and another's handler is back
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL
    with time_limit(0.05):
        pass
    began = time.process_time()
    while time.process_time() - began < 0.2:
        pass


def test_a_sleep_does_not_count() -> None:
    with time_limit(0.05):
        time.sleep(0.2)


def in_thread(call) -> list:
    found: list = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


def test_hashes_of_the_helper_are_fixed(text: str) -> None:
    process = robocrys._helper().process
    assert process is not None
    assert b"PYTHONHASHSEED=0" in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_text_is_the_same_whatever_the_hashes_of_the_build(seed: str, tmp_path: Path) -> None:
    code = """if True:
        from shards.features import feature
        from shards.sources.base import Record
        from shards.sources.embedded import embedded_records
        found = next(found for found in embedded_records() if found.id == "BaCl2_fluorite")
        print(feature({"step": "robocrys"})(Record(id="x", structure=found.structure)))
    """
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    # the two words come from a set of strings
    assert "a mixture of corner and edge-sharing ClBa4 tetrahedra" in done.stdout


def test_an_answer_that_nobody_waited_for_is_never_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = robocrys._Helper()
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: popen(["/bin/sleep", "100"], **options))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            helper.ask(robocrys._plain(CSCL), 60.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert helper.process is None


@pytest.mark.slow
def test_in_a_thread_a_process_describes(text: str) -> None:
    def call() -> list:
        found = [feature({"step": "robocrys"})(record()), feature({"step": "robocrys", "seconds": 0.02})(record())]
        helper = robocrys._helper()
        assert helper.process is not None
        first = helper.process
        # one that is killed costs one answer, and another takes its place
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        found.append(helper.ask(robocrys._plain(CSCL), 60.0)["text"])
        found.append(helper.process is not first)
        helper.process.stdin.close()
        helper.process.wait()
        return found

    assert in_thread(call) == [[text, None, text, True]]


def test_a_helper_that_dies_over_a_crystal_costs_its_text(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    step = feature({"step": "robocrys", "on_timeout": "quarantine"})
    (error,) = in_thread(lambda: step(record()))
    assert isinstance(error, DataError) and "died or hung" in str(error)
    assert not cache.exists(), "what may pass was kept"


@pytest.mark.slow
def test_processes_share_the_cache(text: str, cache: Path) -> None:
    code = """if True:
        import json, sys
        from pymatgen.core import Structure
        from shards.features import feature
        from shards.sources.base import Record
        structure = Structure.from_dict(json.loads(sys.argv[1]))
        print(feature({"step": "robocrys"})(Record(id="x", structure=structure)))
    """
    command = [sys.executable, "-c", code, json.dumps(CSCL.as_dict())]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == [text, text]
    assert len(list(cache.rglob("*"))) == 2


def test_without_robocrystallographer_a_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(robocrys, "version", absent)
    with pytest.raises(ConfigError, match="not installed") as caught:
        feature({"step": "robocrys"}).fitted(EmbeddedSource())
    assert "matloom[materials]" in str(caught.value)


def test_importing_the_step_is_light() -> None:
    code = "import sys, shards.features.robocrys as r; print([m for m in ('robocrys', 'pymatgen') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
