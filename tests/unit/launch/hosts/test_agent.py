"""An agent, as its controller has it: a process with three pipes. Its ranks are small programs, not trainings."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.hosts.messages import Beat, Done, End, Ended, Here, Message, Output, Refused, Signal, Start, decode, encode
from launch.hosts.processes import LONGEST_LINE
from launch.hosts.remote import ROOT, Remote

# a rank that says when it can be asked to end, and then does
POLITE = """
import os, signal, sys, time
def end(number, frame):
    print("asked by", number, flush=True)
    sys.exit(75)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, end)
print("ready", os.environ["RANK"], os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""
DEAF = POLITE.replace("sys.exit(75)", "pass")


class Spoken:
    """A controller's end: says messages and waits for others; a context that leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = Remote().popen("localhost", "launch.hosts.agent")
        self.heard: list[Message] = []
        here = self.until(Here)
        assert isinstance(here, Here) and here.pid == self.process.pid
        self.port = here.port
        self.ranks: list[psutil.Process] = []

    def __enter__(self) -> Spoken:
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*self.ranks, self.process]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def start(self, program: str, count: int = 1, **more: Any) -> None:
        start = Start(
            command=[sys.executable, "-c", program], folder=str(self.folder), environment={}, first=0, world=count,
            slots=list(range(count)), node=0, hosts=["localhost"], address="127.0.0.1", port=self.port,
            logs=str(self.folder / "logs"), grace_s=30.0,
        )  # fmt: skip
        self.say(replace(start, **more))

    def say(self, message: Message) -> None:
        assert self.process.stdin
        self.process.stdin.write(encode(message))
        self.process.stdin.flush()

    def until(self, kind: type, text: str = "") -> Message:
        """Hear until there is a message of a kind; beats are not kept."""
        assert self.process.stdout
        for line in self.process.stdout:
            message = decode(line)
            if message is None:
                # the end of what a shell may have said before
                assert line == "\n"
                continue
            if not isinstance(message, Beat):
                self.heard.append(message)
            if isinstance(message, kind) and text in getattr(message, "text", ""):
                return message
        raise AssertionError(f"no {kind.__name__}: {self.heard} {self.process.stderr and self.process.stderr.read()}")

    def ready(self) -> None:
        """Return once the first rank runs."""
        said = self.until(Output, "ready")
        assert isinstance(said, Output)
        self.ranks.append(psutil.Process(int(said.text.split()[2])))

    def ended(self) -> dict[int, Ended]:
        self.until(Done)
        self.process.wait(60)
        return {message.rank: message for message in self.heard if isinstance(message, Ended)}

    def log(self, rank: int = 0) -> bytes:
        return (self.folder / "logs" / f"rank-{rank:05d}.log").read_bytes()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Spoken]:
    with Spoken(tmp_path) as spoken:
        yield spoken


def test_ranks_learn_who_they_are(agent: Spoken) -> None:
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE",
             "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "OWN"]  # fmt: skip
    program = f"import os; print({{k: v for k, v in os.environ.items() if k in {names}}})"
    agent.start(program, first=3, world=7, slots=[1, 4], node=0, environment={"OWN": "ü"}, port=agent.port)
    ended = agent.ended()
    told = eval(ended[4].lines[0])
    assert told == {
        "RANK": "4", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "2",
        "CROSS_RANK": "0", "CROSS_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port),
        "CUDA_VISIBLE_DEVICES": "1,4", "OWN": "ü",
    }  # fmt: skip
    assert eval(agent.log(3)) == {**told, "RANK": "3", "LOCAL_RANK": "0"}


def test_all_slots_of_a_host_are_no_selection(agent: Spoken) -> None:
    agent.start("import os; print('CUDA_VISIBLE_DEVICES' in os.environ)")
    assert agent.ended()[0].lines == ["False"]


def test_the_controller_has_read_the_file_of_variables_and_what_it_sends_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATLOOM_ENV_FILE", "/nowhere")
    with Spoken(tmp_path) as agent:
        agent.start("import os; print(os.environ.get('MATLOOM_ENV_FILE'), os.environ['A'])", environment={"A": "sent"})
        assert agent.ended()[0].lines == ["None sent"]


def test_only_the_first_rank_is_shown_and_all_are_kept(agent: Spoken) -> None:
    program = "import os, sys; print('out', os.environ['RANK']); print('err', file=sys.stderr); sys.exit(3)"
    agent.start(program, 2)
    ended = agent.ended()
    assert [(rank.code, rank.ours) for rank in ended.values()] == [(3, False)] * 2
    shown = [message for message in agent.heard if isinstance(message, Output)]
    assert sorted((message.text, message.error) for message in shown) == [("err", True), ("out 0", False)]
    assert sorted(agent.log(1).split()) == [b"1", b"err", b"out"] and sorted(ended[1].lines) == ["err", "out 1"]


def test_output_of_any_kind_and_size(agent: Spoken) -> None:
    program = (
        "import os\n"
        f"os.write(1, b'w' * {3 * LONGEST_LINE} + b'\\n')\n"
        "os.write(1, b'\\xff\\xfe\\0 no text\\r\\n')\n"
        "for i in range(50000): os.write(2, b'%d\\n' % i)\n"
        "os.write(1, b'no end')"
    )
    agent.start(program, first=1, world=2)
    lines = agent.ended()[1].lines
    assert "no end" in lines and "49999" in lines
    log = agent.log(1)
    assert log.count(b"w") == 3 * LONGEST_LINE and "\ufffd\ufffd\0 no text\n".encode() in log
    assert all(b"%d\n" % i in log for i in (0, 25000, 49999))


def test_a_disk_that_takes_no_output_stops_no_rank(agent: Spoken) -> None:
    (agent.folder / "logs").mkdir()
    (agent.folder / "logs" / "rank-00000.log").symlink_to("/dev/full")
    agent.start("for i in range(3): print(i)")
    assert agent.ended()[0].lines == ["0", "1", "2"] and agent.heard[-2].code == 0  # type: ignore[union-attr]
    complaints = [m.text for m in agent.heard if isinstance(m, Output) and "cannot be kept" in m.text]
    assert len(complaints) == 1 and "No space left" in complaints[0]


def test_secrets_stand_in_no_output(agent: Spoken) -> None:
    program = "import os; print('the', os.environ['HF_TOKEN'])"
    agent.start(program, environment={"HF_TOKEN": "hf_canary0123456789"})
    assert agent.ended()[0].lines == ["the ***"]
    assert b"canary" not in agent.log() and not any("canary" in str(message) for message in agent.heard)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("by", ["message", "signal"])
def test_signals_reach_the_ranks_once(agent: Spoken, number: signal.Signals, by: str) -> None:
    agent.start(POLITE, 2)
    agent.ready()
    for _ in range(2):
        if by == "signal":
            agent.process.send_signal(number)
        else:
            agent.say(Signal(number))
    ended = agent.ended()
    assert [ended[rank].code for rank in (0, 1)] == [75, 75]
    assert ended[0].lines[1:] == [f"asked by {number.value}"]


# Python catches INT before the program does
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_cannot_catch_a_signal_yet_is_told_later(agent: Spoken, number: signal.Signals) -> None:
    go = agent.folder / "go"
    waits = f"import os, time\nprint('born', flush=True)\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
    agent.start(waits + POLITE)
    agent.until(Output, "born")
    agent.say(Signal(number))
    # obeyed in this order: what the agent itself says of the second shows that it has read the first
    time.sleep(0.3)
    go.touch()
    assert agent.ended()[0].code == 75


def test_what_does_not_end_is_killed_after_its_grace(agent: Spoken) -> None:
    agent.start(DEAF)
    agent.ready()
    agent.say(End(0.2))
    ended = agent.ended()[0]
    assert (ended.code, ended.ours) == (-signal.SIGKILL, True)
    assert "asked by 15" in ended.lines


def test_a_stopped_rank_is_killed_too(agent: Spoken) -> None:
    agent.start(DEAF)
    agent.ready()
    agent.ranks[0].suspend()
    agent.say(End(0.2))
    assert agent.ended()[0].code == -signal.SIGKILL


@pytest.mark.parametrize("code", [0, 9])
def test_what_a_rank_leaves_behind_is_ended(agent: Spoken, code: int) -> None:
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    program = (
        "import subprocess, sys, os\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        f"print('ready', 0, p.pid, flush=True)\nos._exit({code})"
    )
    agent.start(program)
    agent.ready()
    assert agent.ended()[0].code == code
    assert not agent.ranks[0].is_running() or agent.ranks[0].status() == psutil.STATUS_ZOMBIE


def test_the_end_of_the_controller_is_that_of_the_ranks(agent: Spoken) -> None:
    agent.start(POLITE)
    agent.ready()
    assert agent.process.stdin
    agent.process.stdin.close()
    assert agent.ended()[0].code == 75


def test_a_controller_that_is_not_heard_has_gone(agent: Spoken) -> None:
    agent.start(POLITE, timeout_s=0.5)
    agent.ready()
    assert agent.ended()[0].code == 75
    assert agent.process.stderr and "no word from the controller" in agent.process.stderr.read()


def test_a_controller_that_beats_has_not(agent: Spoken) -> None:
    agent.start(POLITE, timeout_s=1.0)
    agent.ready()
    for _ in range(8):
        agent.say(Beat())
        time.sleep(0.25)
    assert agent.ranks[0].is_running()
    agent.say(End(30.0))
    assert agent.ended()[0].code == 75


def test_the_death_of_the_agent_is_told_to_the_ranks_by_the_kernel(agent: Spoken) -> None:
    agent.start(POLITE)
    agent.ready()
    agent.process.kill()
    _, alive = psutil.wait_procs(agent.ranks, timeout=60)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_beats_go_on_while_ranks_are_busy(agent: Spoken) -> None:
    agent.start(POLITE)
    agent.ready()
    assert isinstance(agent.until(Beat), Beat)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"folder": "/nowhere"}, "/nowhere"),
        ({"command": ["/nowhere/python"]}, "/nowhere/python"),
        ({"address": "no-such-host.invalid"}, "no-such-host.invalid"),
    ],
)
def test_what_cannot_start_says_why(agent: Spoken, more: dict[str, Any], expected: str) -> None:
    agent.start(POLITE, **more)
    refused = agent.until(Refused)
    assert isinstance(refused, Refused) and expected in refused.why
    assert not agent.ended()


def test_a_taken_port_is_named(agent: Spoken) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        agent.start(POLITE, port=port)
        refused = agent.until(Refused)
    assert isinstance(refused, Refused) and f"port {port}" in refused.why


def test_a_controller_that_has_nothing_to_start_lets_it_go(agent: Spoken) -> None:
    assert agent.process.stdin
    agent.process.stdin.close()
    assert agent.process.wait(60) == 0


def test_it_is_up_in_a_moment() -> None:
    """What costs time would be an import: none of a library but psutil."""
    code = "import sys, launch.hosts.agent; print(*{m.partition('.')[0] for m in sys.modules} & set(%r))"
    heavy = ["torch", "numpy", "pydantic", "typer", "rich", "deepspeed", "mlflow"]
    done = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
