"""A SLURM cluster on the hosts of `namespaces`: munged, slurmctld on the first host, a slurmd on each.

All that it reads and writes is in one folder; nothing of it touches /etc, and it stops with the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.distributed.ranks import TIMEOUT_S
from tests.launch.namespaces import SBIN, Cluster, Node, wait_for

TOOLS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "salloc", "scontrol", "scancel", "squeue")
CPUS, GPUS = 4, 2
# processes are found by their process group, as there are no cgroups here; GPUs are devices that everybody has.
# What a site waits minutes for takes seconds: a dead node (SlurmdTimeout), TERM before KILL (KillWait), a requeue
# (cred_expire)
CONF = """
ClusterName=matloom
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=20
SlurmdTimeout=6
SlurmctldTimeout=60
TreeWidth=50
{nodes}
PartitionName=work Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Say which programs of SLURM are absent, or None."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    return f"SLURM needs {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)" if absent else None


class Slurm:
    """A controller and a daemon a host; a context that leaves none behind.

    Parameters
    ----------
    cluster : Cluster
    folder : Path
        For its configuration, state and logs. Short: a socket's path has 107 characters at most.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        folder.chmod(0o755)
        for name in ("state", *(f"spool-{node.name}" for node in cluster.nodes)):
            (folder / name).mkdir()
        nodes = [
            f"NodeName={node.name} NodeAddr={node.address} CPUs={CPUS} RealMemory=8000 Gres=gpu:{GPUS} State=UNKNOWN"
            for node in cluster.nodes
        ]
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, nodes="\n".join(nodes)))
        (folder / "gres.conf").write_text(f"Name=gpu File=/dev/tty[0-{GPUS - 1}]\n")
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)

    def __enter__(self) -> Slurm:
        try:
            self._start(
                "munged", self.cluster.nodes[0], "munged", "--foreground", "--force",
                f"--key-file={self.folder}/munge.key",
                f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid",
                f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed",
            )  # fmt: skip
            wait_for((self.folder / "munge.socket").exists, 20)
            self._start("slurmctld", self.cluster.nodes[0], "slurmctld", "-D", "-c")
            for node in self.cluster.nodes:
                self.start_node(node)
            self.idle()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return what SLURM's commands need, and nothing of a SLURM job that these tests may run in."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), **(more or {})}

    def _start(self, name: str, node: Node, *words: object) -> None:
        log = self.folder / f"{name}.out"
        self.daemons[name] = node.popen(*words, log=log, env=self.environment())

    def start_node(self, node: Node) -> None:
        """Start the daemon of a host."""
        self._start(node.name, node, "slurmd", "-D", "-N", node.name)

    def kill_node(self, node: Node) -> None:
        """End the daemon of a host and all that it has started, as a power cut would; its cable is as it was."""
        daemon = self.daemons.pop(node.name)
        ours = {process.pid for process in self.daemons.values()}
        for process in node.processes():
            with contextlib.suppress(psutil.Error):
                if process.pid not in ours:
                    process.kill()
        daemon.wait()

    def close(self) -> None:
        """End all daemons, and what they have started."""
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        for node in self.cluster.nodes:
            node.kill_all()

    def run(self, *words: object, env: Mapping[str, str] | None = None, check: bool = True) -> str:
        """Run a command of SLURM on the first host; returns its output."""
        done = self.cluster.nodes[0].run(*words, **self.environment(env))
        told = done.stdout + done.stderr
        assert not check or done.returncode == 0, f"{' '.join(map(str, words))}: {done.returncode}\n{told}"
        return done.stdout

    def popen(self, *words: object, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command of SLURM on the first host."""
        return self.cluster.nodes[0].popen(*words, log=log, env=self.environment(env))

    def idle(self) -> None:
        """Wait until all nodes are there and do nothing."""
        count = str(len(self.cluster.nodes))
        wait_for(lambda: self.run("sinfo", "-h", "-o", "%D %T", check=False).split() == [count, "idle"], 60)

    def submit(self, *words: object, env: Mapping[str, str] | None = None) -> int:
        """Submit a batch job; returns its number."""
        return int(self.run("sbatch", "--parsable", *words, env=env).strip())

    def job(self, number: int) -> dict[str, str]:
        """Return what the controller knows of a job."""
        text = self.run("scontrol", "show", "job", "-o", number)
        return dict(re.findall(r"(\S+?)=(.*?)(?=\s+\S+?=|\s*$)", text))

    def wait(self, number: int, *states: str, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
        """Wait until a job is in one of some states, and return what is known of it."""
        wait_for(lambda: self.job(number)["JobState"] in states, timeout_s)
        return self.job(number)

    def told(self) -> str:
        """Return the ends of all logs, for the message of a failed test."""
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)
