"""Which rank a task of SLURM is: the variables that ``srun`` sets, as those that ``torchrun`` would set.

Only what belongs to the step counts. A batch script and a shell of ``salloc`` have variables of the same names, with
the numbers of the whole job; whoever took those for its own would wait for ranks that nobody has started.

The variables are those of SLURM 22.05 (srun(1), "OUTPUT ENVIRONMENT VARIABLES"), which later versions have too.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping

from shards.errors import ConfigError

# steps that are no step of srun: a batch script, and the shell of an interactive allocation (slurm.h)
NO_STEPS = {"4294967291", "4294967290"}
# below the ports that Linux gives to connections (32768 to 60999), above those that services have
FIRST_PORT, PORTS = 20000, 10007
# a run of steps this long gets ports of its own before those of the next job begin
STEPS = 101
# SLURM's own limit (MAX_SLURM_NODES)
MOST_HOSTS = 65536
# a name, or literals each with numbers in brackets, the last thing of a name
PART = re.compile(r"(?:[^,\[\]]*\[[0-9,-]+\])+|[^,\[\]]+")
LIST = re.compile(rf"(?:{PART.pattern})(?:,(?:{PART.pattern}))*")
PIECE = re.compile(r"([^\[\]]*)\[([^\]]*)\]")
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
NO_STEP = "start it by 'srun python launch/pretrain.py ...' (one process on purpose: 'srun --nodes=1 --ntasks=1 ...')"


def slurm_place(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return the variables of a rank, or None where SLURM has not started this process as a task.

    Parameters
    ----------
    environment : mapping of str to str
        Variables of this process.

    Returns
    -------
    dict of str to str or None
        RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; the last two are equal on all
        tasks of a step. LOCAL_RANK is the number of the accelerator: 0 where SLURM shows each task its own alone.

    Raises
    ------
    ConfigError
        Where the job has several tasks and this process is none of a step, or the variables contradict each other.
    """
    if environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", "")) in {"", *NO_STEPS}:
        _refuse_many(environment)
        return None
    rank, world = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    node, local = _number(environment, "SLURM_NODEID"), _number(environment, "SLURM_LOCALID")
    hosts = expand(_text(environment, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))
    tasks = tasks_per_node(_text(environment, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    if not (rank < world == sum(tasks) and len(set(hosts)) == len(tasks) > node and local < tasks[node]):
        raise _contradiction(
            f"task {rank} of {world}, {local} on node {node} of {','.join(hosts)}, which have {tasks} tasks"
        )
    if environment.get("SLURM_DISTRIBUTION", "").startswith("arbitrary") and len(hosts) > 1:
        # task 0, which the others look for on the first host, may be on any
        raise ConfigError(
            "srun --distribution=arbitrary is not supported",
            where="SLURM_DISTRIBUTION",
            do="leave out --distribution and SLURM_HOSTFILE, or take block, cyclic or plane",
        )
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(_accelerator(environment, local, tasks[node])),
        "LOCAL_WORLD_SIZE": str(tasks[node]),
        "MASTER_ADDR": hosts[0],
        "MASTER_PORT": str(port(environment)),
    }


def expand(hosts: str) -> list[str]:
    """Return the names in a host list of SLURM: ``gpu[001-003,007],login1`` are five; as `scontrol show hostnames`."""
    if not LIST.fullmatch(hosts):
        raise _contradiction(f"{hosts[:80]!r} is no host list")
    names: list[str] = []
    for part in PART.findall(hosts):
        pieces = PIECE.findall(part)
        ranges = [_range(numbers, hosts) for _, numbers in pieces]
        if len(names) + math.prod(map(len, ranges)) > MOST_HOSTS:
            raise _contradiction(f"the host list {hosts[:80]!r} names more than {MOST_HOSTS} hosts")
        names += _names([literal for literal, _ in pieces], ranges) if pieces else [part]
    return names


def tasks_per_node(text: str) -> list[int]:
    """Return the number of tasks of each node: ``2(x3),1`` is ``[2, 2, 2, 1]``."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        if not match or int(match[2] or 1) > MOST_HOSTS:
            raise _contradiction(f"{text[:80]!r} is no number of tasks a node, as '2(x3),1' is")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def port(environment: Mapping[str, str]) -> int:
    """Return the port on which the ranks of a step meet.

    The first that SLURM has reserved for the step (``--resv-ports``), else a function of job and step: equal on all
    tasks, another one for another step of the job, and almost always for another job on the same host.
    """
    reserved = environment.get("SLURM_STEP_RESV_PORTS", "")
    if reserved:
        match = re.match(r"([0-9]{1,5})(?:[-,]|$)", reserved)
        if not match or not 0 < int(match[1]) < 65536:
            raise _contradiction(f"SLURM_STEP_RESV_PORTS={reserved[:80]!r} is no range of ports")
        return int(match[1])
    job, step = (
        _number(environment, "SLURM_JOB_ID", "SLURM_JOBID"),
        _number(environment, "SLURM_STEP_ID", "SLURM_STEPID"),
    )
    return FIRST_PORT + (job * STEPS + step) % PORTS


def _refuse_many(environment: Mapping[str, str]) -> None:
    """Raise where the job wants more than the one process that runs outside of any step."""
    if "SLURM_JOB_ID" not in environment:
        return
    tasks = _number(environment, "SLURM_NTASKS") if "SLURM_NTASKS" in environment else 1
    nodes = environment.get("SLURM_JOB_NUM_NODES", "1")
    if tasks > 1 or nodes != "1":
        raise ConfigError(
            f"SLURM job {environment['SLURM_JOB_ID']} has {nodes} nodes and {tasks} tasks, and this process is none",
            where="a batch script or a shell of salloc",
            why="it runs there once; srun alone starts tasks",
            do=NO_STEP,
        )


def _accelerator(environment: Mapping[str, str], local: int, tasks: int) -> int:
    """Return the number of a task's accelerator among those that it sees."""
    for name in VISIBLE:
        if visible := environment.get(name):
            count = len(visible.split(","))
            if count == 1:
                return 0
            if count < tasks:
                raise ConfigError(
                    f"{tasks} tasks of a node see {count} accelerators",
                    where=f"{name}={visible[:80]}",
                    do="ask for --gpus-per-node as many as --ntasks-per-node, or for --gpus-per-task=1",
                )
    return local


def _names(literals: list[str], ranges: list[list[str]]) -> list[str]:
    # the last numbers run fastest, then the first ones, the second, ...: SLURM's order
    *others, last = ranges
    return [
        "".join(map(str.__add__, literals, (*reversed(numbers), number)))
        for *numbers, number in itertools.product(*reversed(others), last)
    ]


def _range(numbers: str, hosts: str) -> list[str]:
    endings: list[str] = []
    for part in numbers.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        if not match:
            raise _contradiction(f"{hosts[:80]!r} is no host list")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < MOST_HOSTS:
            raise _contradiction(f"the host list {hosts[:80]!r} has a range that is empty or too long")
        endings += [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return endings


def _text(environment: Mapping[str, str], *names: str) -> str:
    for name in names:
        if value := environment.get(name):
            return value
    raise _contradiction(f"{names[0]} is not set")


def _number(environment: Mapping[str, str], *names: str) -> int:
    value = _text(environment, *names)
    if not re.fullmatch(r"[0-9]{1,10}", value):
        raise _contradiction(f"{names[0]}={value[:80]!r} is no number")
    return int(value)


def _contradiction(what: str) -> ConfigError:
    return ConfigError(
        "the variables of SLURM cannot be used",
        where=what,
        why="something has changed or removed variables of srun, or the step has a shape that is not supported",
        do="start it by plain 'srun python launch/pretrain.py ...'; or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR "
        "and MASTER_PORT, which come first",
    )
