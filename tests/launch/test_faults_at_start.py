"""What is wrong with one host before a run starts: it is named within the time-out, and no rank is started in vain."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from pretrain.ports import free_port
from tests.distributed import held
from tests.distributed.ranks import ROOT
from tests.distributed.runs import Workshop
from tests.launch.faulty import CHECK_S, LOST_S, TIMES, Fault, counted, ended, marked
from tests.launch.launched import NOWHERE, launch_run
from tests.launch.namespaces import Cluster, wait_for
from tests.launch.test_preflight import FAKETIME, instead, mounted, sshd

pytestmark = pytest.mark.launch
PORT = free_port()


@dataclass(frozen=True)
class Place:
    """What a fault may touch."""

    cluster: Cluster
    shop: Workshop
    data: Path
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"


def text(find: Callable[[Place], Path], change: Callable[[str], str]) -> Callable[[Place], Any]:
    """Let the second host see another text in a file."""
    return lambda place: instead(place.cluster.nodes[1], find(place), change(find(place).read_text()), place.folder)


@contextmanager
def taken(place: Place) -> Any:
    program = f"import socket, time; s = socket.create_server(('', {PORT})); print('up', flush=True); time.sleep(1000)"
    log = place.folder / "taken.log"
    listener = place.cluster.nodes[0].popen("python", "-c", program, log=log)
    try:
        wait_for(lambda: "up" in log.read_text())
        yield
    finally:
        listener.kill()
        listener.wait()


@contextmanager
def refused(place: Place) -> Any:
    place.cluster.nodes[1].stop_sshd()
    try:
        yield
    finally:
        place.cluster.nodes[1].start_sshd()


@contextmanager
def cut(place: Place) -> Any:
    place.cluster.nodes[1].wire(up=False)
    try:
        yield
    finally:
        place.cluster.nodes[1].mend()


@contextmanager
def read_only(place: Place) -> Any:
    node = place.cluster.nodes[1]
    place.run.mkdir()
    with mounted(node, place.run, "--bind", place.run):
        assert node.run("mount", "-o", "remount,bind,ro", place.run).returncode == 0
        yield


def ahead(place: Place) -> Any:
    if not FAKETIME.exists():
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    return sshd(place.cluster.nodes[1], f"SetEnv LD_PRELOAD={FAKETIME} FAKETIME=+120s FAKETIME_DONT_FAKE_MONOTONIC=1\n")


def metadata(place: Place) -> Path:
    return next(Path(file.locate()) for file in distribution("timm").files or [] if file.name == "METADATA")


def nameless(place: Place) -> Any:
    return text(lambda place: Path("/etc/hosts"), lambda _: "127.0.0.1 localhost\n")(place)


HOLDER, NO_CHECK = ("--master-port", PORT), ("--no-check",)
FAULTS = [
    Fault("bad DNS", "the host does not know the first one's name", nameless, 8, ("it does not know 'node1'",)),
    Fault("bad DNS, unchecked", "the same with --no-check", nameless, 8, ("node2 cannot start its ranks",), NO_CHECK),
    Fault("port taken", "--master-port is another process's", taken, 8, (f"port {PORT} is not free", "node1"), HOLDER),
    Fault(
        "port taken, unchecked", "the same with --no-check", taken, 8,
        ("node1 cannot start its ranks", f"port {PORT}"), (*HOLDER, *NO_CHECK),
    ),
    Fault("ssh refused", "sshd does not run there", refused, 8, ("it refuses ssh connections",)),
    Fault("ssh refused, unchecked", "the same with --no-check", refused, 8, ("refused",), NO_CHECK),
    Fault("link down before the start", "the cable is cut before the start", cut, 8, ("node2",)),
    Fault(
        "link down before the start, unchecked", "the same with --no-check", cut, 8,
        ("node2 does not answer",), NO_CHECK,
    ),
    Fault("clock skew", "two minutes ahead (libfaketime)", ahead, 8, ("ahead of the others",)),
    Fault(
        "version skew", "another version of timm there",
        text(metadata, lambda text: text.replace("\nVersion: ", "\nVersion: 0.")), 8, ("versions: timm 0.",),
    ),
    Fault(
        "code skew", "one more line in a module there",
        text(lambda place: ROOT / "launch" / "bars.py", lambda text: f"{text}# more\n"), 8,
        ("launch/bars.py is not as on",),
    ),
    Fault(
        "recipe skew", "another seed there",
        text(lambda place: place.shop.recipe, lambda text: text.replace("seed = 5", "seed = 6")), 8,
        ("is another one than",),
    ),
    Fault(
        "manifest skew", "one more blank in the manifest there",
        text(lambda place: place.data / "manifest.json", lambda text: f"{text} "), 8,
        ("manifest of", "is another one than"),
    ),
    Fault("folder read-only", "on the second host", read_only, 8, ("cannot be written: Read-only file system",)),
]  # fmt: skip
QUICK = {"bad DNS, unchecked", "port taken, unchecked", "ssh refused", "code skew"}


@pytest.fixture
def shop(tmp_path: Path, toy_folder: Path) -> Workshop:
    return held.held_shop(tmp_path, toy_folder)


@pytest.mark.parametrize("fault", marked(FAULTS, QUICK))
def test_a_host_that_is_not_right_is_named_before_the_start(
    cluster: Cluster, shop: Workshop, tmp_path: Path, toy_folder: Path, fault: Fault
) -> None:
    unchecked = "--no-check" in fault.options
    within = "`--host-timeout`" if unchecked else "the answers of all hosts, 60 s"
    with counted("before the start", fault.name, fault.how, fault.code, within) as row, ExitStack() as stack:
        stack.enter_context(fault.provoke(Place(cluster, shop, toy_folder, tmp_path)))
        with launch_run(cluster, shop, "run", *TIMES, *fault.options, phase=NOWHERE) as run:
            ended(row, run, LOST_S if unchecked else CHECK_S)
            told = run.told()
            left = [line for line in cluster.strays() if "create_server" not in line]
        assert row["code"] == fault.code and left == [], told
        host = "node1" if "port" in fault.name else "node2"
        assert all(words in told for words in (host, *fault.says)), told
        assert "Traceback" not in told
        assert not list((shop.folder / "run").glob("checkpoints/*"))
