"""A terminal that is paused: nobody waits for it but the end of the command, and not for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from launch.hosts import terminal
terminal.PATIENCE_S = float(sys.argv[1])
with terminal.Terminal(lambda text: text.replace("secret", "***")) as shown:
    for number in range(20_000):
        shown.show(f"line {number} " + 100 * "x", False)
    shown.show("matloom: the secret end", False)
    with open("done", "w"):
        pass
sys.exit(75)
"""


def started(folder: Path, patience_s: float) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    words = [sys.executable, "-c", PROGRAM, str(patience_s)]
    return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_paused_reader_gets_what_there_is_room_for_and_is_told_of_the_rest(tmp_path: Path) -> None:
    process = started(tmp_path, 300)
    # the run goes on to its end although nothing is read: 2 MB are more than a pipe takes
    while not (tmp_path / "done").exists():
        assert process.poll() is None
    out, err = process.communicate(timeout=120)
    lines = out.decode().splitlines()
    assert process.returncode == 75
    assert lines[0].startswith("line 0 ") and lines[-1] == "matloom: the *** end"
    shown = len(lines) - 1
    assert 5000 <= shown < 20_000 and f"({20_000 - shown} lines are not shown" in err.decode()


def test_a_reader_that_never_reads_keeps_no_command_from_ending(tmp_path: Path) -> None:
    process = started(tmp_path, 0.5)
    assert process.wait(60) == 75
    process.communicate()
