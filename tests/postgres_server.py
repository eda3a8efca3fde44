"""A real PostgreSQL server on loopback; it refuses to run as root, so it runs as somebody else."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pretrain.ports import free_port

PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _user() -> str:
    """Return who runs it: whoever runs the tests, but for root."""
    if os.getuid():
        return pwd.getpwuid(os.getuid()).pw_name
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    pytest.skip("PostgreSQL does not run as root, and there is no other user")


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield the URI of an empty database; skip where there is no PostgreSQL."""
    found = shutil.which("initdb") or next((str(p / "initdb") for p in PLACES if (p / "initdb").exists()), None)
    if found is None:
        pytest.skip("no PostgreSQL on this machine")
    tools, user = Path(found).resolve().parent, _user()
    folder = Path(tempfile.mkdtemp(prefix="matloom-postgres-"))
    shutil.chown(folder, user)
    become = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
    become = become if os.getuid() == 0 else []

    def run(*command: str) -> None:
        done = subprocess.run([*become, *command], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    port = free_port()
    control = (str(tools / "pg_ctl"), "-D", str(folder / "data"), "-w")
    try:
        run(str(tools / "initdb"), "-D", str(folder / "data"), "-U", "matloom", "-A", "trust", "--no-sync")
        options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
        run(*control, "-o", options, "-l", str(folder / "log"), "start")
        try:
            run(str(tools / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "matloom", "registry")
            yield f"postgresql+psycopg2://matloom@127.0.0.1:{port}/registry"
        finally:
            run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
