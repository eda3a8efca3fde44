"""Where the launcher says nothing of it: rank 0 writes its address into a file of the run's folder, the others read it.

The file is named by the launcher's job, so that what an earlier job has left is never taken for this one's.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from launch.network import contacts_in, reachable_address
from pretrain.ports import free_port
from shards.errors import ConfigError, HostError

PREFIX = ".rendezvous-"
# what is the same in all ranks of a job, and new in each: its number follows from the host and the number of a
# process, which come again, but the key of its transports is drawn by lot
JOB = ("OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE", "OMPI_MCA_orte_precondition_transports", "OMPI_MCA_orte_hnp_uri")
# of mpirun, which every host has reached; of the daemon on this host where there is nothing better
CONTACTS = ("OMPI_MCA_orte_hnp_uri", "PRTE_MCA_prte_hnp_uri", "PMIX_SERVER_URI4", "PMIX_SERVER_URI")
FIRST_LOOK_S, SLOWEST_LOOK_S = 0.05, 1.0


def job_of(environment: Mapping[str, str]) -> str | None:
    """Return the name of the launcher's job, None where it gives none."""
    known = [environment[name] for name in JOB if environment.get(name)]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16] if known else None


def publish(folder: Path, environment: Mapping[str, str], *, local: bool) -> tuple[str, int]:
    """Write down where rank 0 will be met, and return it: an address of this host and a free port.

    Parameters
    ----------
    folder : Path
        The run's, which all hosts see.
    environment : mapping
        Of the launcher.
    local : bool
        Whether all ranks are on this host.
    """
    contacts = [address for name in CONTACTS for address in contacts_in(environment.get(name, ""))]
    address = "127.0.0.1" if local else reachable_address(contacts)
    if address is None:
        raise ConfigError(
            "the address at which other hosts reach this one cannot be told",
            where=socket.gethostname(),
            why="its name has none but that of the loopback interface, and the launcher has told none",
            do="export MASTER_ADDR, and have the launcher pass it on (mpirun -x MASTER_ADDR)",
        )
    path = _path(folder, environment)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{PREFIX}*"):
        old.unlink(missing_ok=True)
    # of all interfaces, as the store of rank 0 will listen
    port = free_port("")
    meeting = {"address": address, "port": port, "host": socket.gethostname()}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(meeting))
    # whole, or not there
    os.replace(partial, path)
    atexit.register(_remove, path)
    return address, port


def await_first_rank(folder: Path, environment: Mapping[str, str], timeout_s: float) -> tuple[str, int]:
    """Return the address and the port that rank 0 of this job has written down, or raise `HostError`."""
    path = _path(folder, environment)
    deadline, pause = time.monotonic() + timeout_s, FIRST_LOOK_S
    while True:
        # looking into the folder makes NFS forget that there was no such file
        with suppress(OSError):
            if path.name in os.listdir(folder):
                meeting = json.loads(path.read_text())
                return str(meeting["address"]), int(meeting["port"])
        if time.monotonic() >= deadline:
            raise HostError(
                f"rank {environment['RANK']} has waited {timeout_s:.0f} s for the address of rank 0",
                where=f"{socket.gethostname()}: {path}",
                why="rank 0 has not come so far, or the run's folder is another one on its host",
                do=f"look into {folder} on both hosts; or export MASTER_ADDR and MASTER_PORT (mpirun -x)",
            )
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, SLOWEST_LOOK_S)


def _path(folder: Path, environment: Mapping[str, str]) -> Path:
    job = job_of(environment)
    if job is None:
        raise ConfigError(
            "the launcher says neither the address of rank 0 nor the name of its job",
            where=f"rank {environment['RANK']} on {socket.gethostname()}",
            do="export MASTER_ADDR=FIRST_HOST MASTER_PORT=29500, and have it pass them on (-genv, -x, -env)",
        )
    return folder / f"{PREFIX}{job}.json"


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
