"""Why nothing runs on a host: what ssh, the shell there or Python said last, as a sentence and a remedy."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from launch.hosts.remote import ROOT
from shards.errors import HostError

SSH_FAILED = 255
# what ssh says (OpenSSH 9), and what it means; the first that fits
SSH = (
    (r"could not resolve hostname", "its name is unknown here", "correct the hostfile, or name it in /etc/hosts"),
    (r"connection refused", "it refuses ssh connections", "start sshd there, or give its port in ssh's configuration"),
    (r"permission denied", "it does not take our ssh key", "ssh-copy-id {host}; it must let you in without a password"),
    (r"host key verification failed|identification has changed", "its ssh key is not known here, or has changed",
     "log in once by 'ssh {host}' and compare the key, or use ssh-keyscan"),
    (r"no route to host|network is unreachable", "there is no way to it through the network",
     "see whether it is up and its network cable and routes are whole: ping {host}"),
    (r"timed out|timeout", "it cannot be reached: no answer to ssh in time",
     "see whether it is up and no firewall drops port 22: ping {host}"),
    (r"closed|reset|broken pipe", "the connection to it broke", "see sshd's log there, and whether it is going down"),
)  # fmt: skip
# what a shell (dash, bash) or Python says
THERE = (
    (r"can't cd to|cd: .*no such file", "the working directory is missing there",
     "start where all hosts see the same folder"),
    (r"no module named '?(launch|shards|pretrain|finetune)\b|no module named .*launch",
     "the project is missing there at {root}", "put it on storage that all hosts share, or install it at that path"),
    (r"no module named '?([\w.]+)", "a package is missing there: {said}", "pip install -e {root} with {python} there"),
    (r"{python}.*(not found|no such file|permission denied|cannot execute)", "there is no Python at {python} there",
     "create the same environment at that path, or put it on storage that all hosts share"),
)  # fmt: skip


def explained(host: str, code: int | None, errors: Sequence[str]) -> HostError:
    """Return what to tell of a process on a host that ended without an answer.

    Parameters
    ----------
    host : str
        Its name.
    code : int or None
        The exit code of ssh, or of the process itself; None where it goes on.
    errors : sequence of str
        Lines of its standard error.
    """
    text = "\n".join(errors)
    said = next((line.strip() for line in reversed(errors) if line.strip()), "")
    words = {"host": host, "root": ROOT, "python": sys.executable, "said": said}
    for pattern, what, do in SSH if code == SSH_FAILED else THERE:
        if re.search(pattern.replace("{python}", re.escape(sys.executable)), text, re.IGNORECASE):
            return HostError(what.format(**words), where=host, why=said, do=do.format(**words))
    if code == SSH_FAILED:
        return HostError("ssh failed", where=host, why=said or "it said nothing", do=f"try 'ssh {host} true'")
    how = "closed its output" if code is None else f"ended with exit code {code}"
    if code is not None and code < 0:
        how = f"was ended by signal {-code}"
    return HostError(f"the check {how}", where=host, why=said or "it said nothing", do=f"try 'ssh {host} true'")
