"""Processes on hosts: that there may be many of them."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from launch.hosts.remote import Remote

MANY = """
import resource
from launch.hosts.remote import Remote
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
processes = [Remote().popen("localhost", "json.tool") for _ in range(20)]
for process in processes:
    assert process.communicate("1")[0] == "1\\n"
"""


def test_more_hosts_than_the_usual_number_of_open_files_allows() -> None:
    subprocess.run([sys.executable, "-c", MANY], check=True)


def options_of(command: str) -> dict[str, str]:
    """What ssh makes of a command line."""
    words = Remote.by(command, 60.0).command("w9", "json.tool")
    words = words[words.index("ssh") :]
    shown = subprocess.run([words[0], "-G", *words[1:]], capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh")
@pytest.mark.parametrize(
    ("command", "batch", "prompts"),
    [
        ("ssh", "yes", "3"),
        ("ssh -o BatchMode=no", "no", "3"),
        ("sshpass -e ssh", "no", "1"),
        ("/usr/bin/sshpass -f /run/password ssh -o NumberOfPasswordPrompts=2", "no", "2"),
    ],
)
def test_ssh_asks_nobody_but_who_answers(command: str, batch: str, prompts: str) -> None:
    found = options_of(command)
    assert (found["batchmode"], found["numberofpasswordprompts"]) == (batch, prompts)
    assert (found["connecttimeout"], found["serveraliveinterval"], found["serveralivecountmax"]) == ("10", "5", "13")
