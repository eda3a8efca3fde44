"""Which rank am I: what torchrun, DeepSpeed, Open MPI, MPICH and SLURM say, in the variables of torch.distributed.

No MPI library is asked, all of it stands in the environment. `adopt_rank` at the start, `meet` once the run's folder
is known.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from pathlib import Path

from launch.network import interface_towards, is_loopback, resolved
from launch.rendezvous import await_first_rank, job_of, publish
from launch.slurm import slurm_place
from pretrain.ports import free_port
from shards.errors import ConfigError

Environment = MutableMapping[str, str]

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# what the launchers of MPI libraries call them; those of one row stand together
DIALECTS = {
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    "MPICH or Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "PALS": ("PMI_RANK", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
}
# torch's own
DEFAULT_PORT = "29500"
WAIT_VARIABLE, WAIT_S = "MATLOOM_RENDEZVOUS_S", 300.0


def adopt_rank(environment: Environment | None = None, *, local_rank: int | None = None) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as the launcher says, or raise `ConfigError`.

    A process that no launcher has started is left as it is.

    Parameters
    ----------
    environment : mapping, optional
        Instead of this process's own.
    local_rank : int, optional
        The command line's ``--local_rank``.
    """
    env = os.environ if environment is None else environment
    if "RANK" not in env:
        _translate(env)
    if "RANK" not in env:
        _refuse_one_of_many(env)
        return
    if "WORLD_SIZE" not in env:
        raise ConfigError(
            f"RANK={env['RANK']} is set, but WORLD_SIZE is not",
            do="unset RANK for a single process, or start the ranks by torchrun, deepspeed, mpirun or srun",
        )
    if "LOCAL_SIZE" in env:
        # DeepSpeed's name of it
        env.setdefault("LOCAL_WORLD_SIZE", env["LOCAL_SIZE"])
    if local_rank is not None and int(env.setdefault("LOCAL_RANK", str(local_rank))) != local_rank:
        raise ConfigError(
            f"--local_rank={local_rank} contradicts LOCAL_RANK={env['LOCAL_RANK']}",
            do="leave --local_rank to the launcher",
        )
    env.setdefault("LOCAL_RANK", "0")
    _check(env)


def meet(folder: Path, environment: Environment | None = None) -> None:
    """Set MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME where the launcher has not, or raise a user's error.

    Parameters
    ----------
    folder : Path
        Of the run, which all hosts see; rank 0 writes its address there if need be.
    environment : mapping, optional
        Instead of this process's own.
    """
    env = os.environ if environment is None else environment
    if "RANK" not in env:
        return
    world = int(env["WORLD_SIZE"])
    # a launcher that does not say may have put one on each host
    across = world > int(env.get("LOCAL_WORLD_SIZE", "1"))
    timeout_s = _seconds(env)
    if not env.get("MASTER_ADDR"):
        if world == 1:
            found = ("127.0.0.1", free_port())
        elif env["RANK"] == "0":
            found = publish(folder, env, local=not across)
        else:
            found = await_first_rank(folder, env, timeout_s)
        env["MASTER_ADDR"] = found[0]
        env["MASTER_PORT"] = str(found[1])
    port = env.setdefault("MASTER_PORT", DEFAULT_PORT)
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"MASTER_PORT={port} is no port", do="MASTER_PORT=29500")
    addresses = resolved(env["MASTER_ADDR"], timeout_s)
    if across and job_of(env) is not None and all(map(is_loopback, addresses)):
        raise ConfigError(
            f"MASTER_ADDR={env['MASTER_ADDR']} is every host for itself, but there are ranks on other hosts",
            where=f"rank {env['RANK']} on {socket.gethostname()}",
            do="leave MASTER_ADDR out, or set it to an address that the other hosts reach",
        )
    if not env.get("GLOO_SOCKET_IFNAME"):
        # gloo would take the address of the host's name, which is 127.0.1.1 on many, and wait there for ever
        interface = interface_towards(env["MASTER_ADDR"], across=across)
        if interface is not None:
            env["GLOO_SOCKET_IFNAME"] = interface


def _translate(env: Environment) -> None:
    """Take the rank from the variables of an MPI launcher, or else of SLURM."""
    for launcher, names in DIALECTS.items():
        rank, world, local_rank, local_world = names
        # srun has a PMI too, without these
        if rank in env and local_rank in env:
            own = {"RANK": env[rank], "WORLD_SIZE": env.get(world, env.get("WORLD_SIZE", ""))}
            own |= {"LOCAL_RANK": env[local_rank]}
            size = env.get(local_world, env.get("LOCAL_SIZE"))
            own |= {} if size is None else {"LOCAL_WORLD_SIZE": size}
            return _take(env, own, launcher)
    if (place := slurm_place(env)) is not None:
        _take(env, place, "SLURM")


def _take(env: Environment, own: dict[str, str], launcher: str) -> None:
    for name, value in own.items():
        if name in NAMES and env.get(name, value) != value:
            raise ConfigError(
                f"{name}={env[name]} contradicts {launcher}, which says {value}",
                where=f"rank {own['RANK']} on {socket.gethostname()}",
                do=f"unset {name} before the start",
            )
        env.setdefault(name, value)


def _check(env: Environment) -> None:
    values = {}
    for name in NAMES:
        if name not in env and name == "LOCAL_WORLD_SIZE":
            continue
        try:
            values[name] = int(env[name])
        except ValueError:
            raise ConfigError(f"{name}={env[name]!r} is no number", do="see what starts this process") from None
    for rank, world in (NAMES[:2], NAMES[2:]):
        if not 0 <= values[rank] < values.get(world, values["WORLD_SIZE"]):
            raise ConfigError(
                f"{rank}={values[rank]} is none of {values.get(world, values['WORLD_SIZE'])} ranks",
                where=f"{world if world in values else 'WORLD_SIZE'} on {socket.gethostname()}",
                do="count ranks from 0; a variable of an earlier run may still be set",
            )
    if values.get("LOCAL_WORLD_SIZE", 1) > values["WORLD_SIZE"]:
        raise ConfigError(
            f"LOCAL_WORLD_SIZE={values['LOCAL_WORLD_SIZE']} is more than WORLD_SIZE={values['WORLD_SIZE']}",
            do="a variable of an earlier run may still be set",
        )
    mpi_rank, mpi_world = (env.get(name) for name in DIALECTS["Open MPI"][:2])
    # mpirun may have started another launcher, one a host
    if (
        not {"TORCHELASTIC_RUN_ID", "CROSS_RANK"} & set(env)
        and mpi_world == env["WORLD_SIZE"]
        and mpi_rank != env["RANK"]
    ):
        raise ConfigError(
            f"RANK={env['RANK']} contradicts OMPI_COMM_WORLD_RANK={mpi_rank}",
            why="RANK was set before the start, and mpirun has given it to all ranks",
            do="unset RANK",
        )


def _refuse_one_of_many(env: Environment) -> None:
    """Refuse a process that is alone although more were wanted: each would train on its own, over the others."""
    if "ACCELERATE_MIXED_PRECISION" in env and "MASTER_ADDR" in env:
        raise ConfigError(
            "accelerate launch has started one process, although more were wanted",
            why="with --cpu it takes --num_processes for the business of mpirun",
            do="accelerate launch --multi_gpu --num_processes N ..., which works without a GPU too",
        )
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if env.get(name, "1") != "1":
            raise ConfigError(
                f"{name}={env[name]} is set, but nothing says which rank this is",
                do=f"unset {name} for a single process, or start the ranks by torchrun, deepspeed, mpirun or srun",
            )


def _seconds(env: Environment) -> float:
    try:
        return float(env.get(WAIT_VARIABLE, WAIT_S))
    except ValueError:
        raise ConfigError(f"{WAIT_VARIABLE}={env[WAIT_VARIABLE]} is no number of seconds") from None
