"""`matloom launch plan`: writes a job file for a scheduler or a launcher."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.options import Config, Out, Set
from launch.run_cli import DeepspeedConfig

Name = Annotated[str | None, typer.Option(help="As the scheduler calls it.")]


def plan(
    ctx: typer.Context,
    config: Config,
    slurm: Annotated[bool, typer.Option("--slurm", help="For sbatch.")] = False,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="For kubectl: Kubeflow Trainer's TrainJob.")] = False,
    mpi: Annotated[bool, typer.Option("--mpi", help="For Open MPI's mpirun.")] = False,
    torchrun: Annotated[bool, typer.Option("--torchrun", help="For torchrun on every host.")] = False,
    ssh: Annotated[bool, typer.Option("--ssh", help="For `matloom launch run` over ssh.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="Hosts.")] = 1,
    ranks_per_node: Annotated[int, typer.Option(min=0, help="Ranks on each; 0: one a GPU, or 1.")] = 0,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs of each.")] = 0,
    cpus: Annotated[int, typer.Option(min=0, help="Cores a rank, and threads; 0: what the scheduler gives.")] = 0,
    hosts: Annotated[str, typer.Option(metavar="A,B", help="Their names, where the job needs them.")] = "",
    time: Annotated[str | None, typer.Option(metavar="D-HH:MM:SS", help="Most that it may take.")] = None,
    partition: Name = None,
    account: Name = None,
    image: Annotated[str | None, typer.Option(help="Of the containers (Kubernetes).")] = None,
    claim: Annotated[str | None, typer.Option(help="Volume claim with the project (Kubernetes).")] = None,
    set_: Set = [],  # noqa: B006  typer copies it
    out: Out = None,
    deepspeed_config: DeepspeedConfig = None,
    env: Annotated[list[str], typer.Option(metavar="NAME", help="A variable that the ranks get too.")] = [],  # noqa: B006
    env_file: Annotated[
        Path | None, typer.Option(help="NAME=VALUE lines, mode 600, on shared storage; each rank reads it.")
    ] = None,
    stage: Annotated[Path | None, typer.Option(help="Folder on each host's own disk that gets the data first.")] = None,
    grace: Annotated[int, typer.Option(min=1, help="Seconds to save in before the end.")] = 120,
    restarts: Annotated[int, typer.Option(min=0, help="How often it starts again after a failure.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Of the project on the hosts; default: this one.")] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter on the hosts; default: this one.")] = None,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there, not to the terminal.")] = None,
) -> None:
    """Write a ready, commented job file, in which no secret stands: --slurm, --kubernetes, --mpi, --torchrun or --ssh.

    The run resumes by itself, saves when a signal asks it to, and ends with 75 then.
    """
    from launch.jobs.base import OBEYED, Job, refuse_unheard, render
    from pretrain.config import load_recipe

    kind = _only({"slurm": slurm, "kubernetes": kubernetes, "mpi": mpi, "torchrun": torchrun, "ssh": ssh})
    refuse_unheard(kind, [option for option in OBEYED if _given(ctx, option)])
    recipe = load_recipe(config, set_)
    _refuse_secrets(set_, env)
    named = tuple(host for host in hosts.split(",") if host)
    job = Job(
        recipe=config,
        name=recipe.name,
        folder=folder or Path.cwd(),
        python=python or ("python3" if kubernetes else sys.executable),
        out=out or Path("runs") / recipe.name,
        nodes=len(named) if named and nodes == 1 else nodes,
        ranks_per_node=ranks_per_node or gpus_per_node or 1,
        gpus_per_node=gpus_per_node,
        overrides=tuple(set_),
        deepspeed=deepspeed_config,
        hosts=named,
        time=time,
        partition=partition,
        account=account,
        image=image,
        claim=claim,
        cpus=cpus,
        env=tuple(env),
        env_file=env_file,
        stage=stage,
        grace_s=grace,
        restarts=restarts,
    )
    text = render(kind, job)
    if write is None:
        typer.echo(text, nl=False)
        return
    _write(write, text, executable=text.startswith("#!"))
    typer.echo(f"{write}: {job.nodes} x {job.ranks_per_node} ranks; how to start it stands at its beginning", err=True)


def _only(kinds: dict[str, bool]) -> str:
    from shards.errors import ConfigError

    chosen = [kind for kind, wanted in kinds.items() if wanted]
    if len(chosen) != 1:
        raise ConfigError("name one kind of job", do=f"one of --{', --'.join(kinds)}")
    return chosen[0]


def _given(ctx: typer.Context, option: str) -> bool:
    """Say whether an option stands on the command line."""
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_secrets(overrides: list[str], env: list[str]) -> None:
    from launch.hosts.redaction import holds_secret
    from shards.errors import ConfigError

    for item in overrides:
        name, _, value = item.partition("=")
        if holds_secret(name, value):
            raise ConfigError(f"--set {name}: a secret must not stand in a job file", do="give it by --env-file FILE")
    for item in env:
        if "=" in item:
            name = item.partition("=")[0]
            raise ConfigError(f"--env {name}=...: a job file names variables, it does not set them", do=f"--env {name}")


def _write(path: Path, text: str, *, executable: bool) -> None:
    from shards.errors import ConfigError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if executable:
            path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        raise ConfigError("the job file cannot be written", where=path, why=error.strerror) from None
