"""Processes on hosts: that there may be many of them."""

from __future__ import annotations

import subprocess
import sys

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
