"""`matloom launch run`, and `matloom pretrain`, which is the same on this host alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from launch.options import (
    Config,
    Env,
    EnvFile,
    Exclude,
    Hostfile,
    Include,
    Json,
    MasterAddr,
    MasterPort,
    Out,
    Set,
    Ssh,
)
from launch.start import HERE

if TYPE_CHECKING:
    from launch.hosts.controller import Job
    from launch.hosts.hostfile import Host
    from launch.hosts.preflight import Request
    from launch.hosts.readiness import Check
    from launch.hosts.remote import Remote
    from launch.hosts.restarts import Elastic, Stage
    from pretrain.config import Recipe


class ResumeCommand(TyperCommand):
    """A command whose ``--resume`` may stand alone, or before ``auto``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write out what a lone ``--resume`` means."""
        words = [
            "--resume=always" if word == "--resume" and following != "auto" else word
            for word, following in zip(args, [*args[1:], ""], strict=True)
        ]
        return super().parse_args(ctx, words)


Resume = Annotated[
    Literal["always", "auto"] | None,
    typer.Option(
        metavar="[auto]",
        help="Continue from the newest good checkpoint; auto: start where there has never been one.",
    ),
]
DeepspeedConfig = Annotated[
    str | None,
    typer.Option(
        "--deepspeed-config",
        "--deepspeed_config",
        metavar="FILE|PROFILE",
        help="DeepSpeed JSON that wins over the recipe; or zero1, zero2, zero3, zero3-offload.",
    ),
]
Restarts = Annotated[
    int, typer.Option(min=0, help="How often to start again, from the newest good checkpoint, after a failure.")
]
Grace = Annotated[float, typer.Option(min=0, help="Seconds that ranks get to save and end once another has failed.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print commands, environment, batches, memory, disk and time; train nothing.")
]
Calibrate = Annotated[
    int, typer.Option(min=0, help="Steps that --dry-run makes to estimate the time, and forgets; 0: none.")
]


@dataclass
class Wish:
    """What is to be pretrained, as the options say.

    Attributes
    ----------
    config, set_, out, resume, deepspeed_config
        As of launch/pretrain.py.
    """

    config: Path
    set_: list[str] = field(default_factory=list)
    out: Path | None = None
    resume: Literal["always", "auto"] | None = None
    deepspeed_config: str | None = None

    def recipe(self) -> Recipe:
        """Read the recipe, or raise `ConfigError`; also where a secret would stand on the command line of ranks."""
        from launch.hosts.environment import refuse_secret_words
        from pretrain.config import load_recipe

        for item in self.set_:
            name, _, value = item.partition("=")
            refuse_secret_words(f"--set {name}", value, "write it into the recipe")
        return load_recipe(self.config, self.set_)

    def folder(self, recipe: Recipe) -> Path:
        """Return the folder of the run."""
        return self.out or Path("runs") / recipe.name

    def command(self, resume: str | None) -> list[str]:
        """Return what every rank runs."""
        words = [sys.executable, "-u", str(HERE / "pretrain.py"), "--config", str(self.config)]
        words += [word for item in self.set_ for word in ("--set", item)]
        words += ["--out", str(self.out)] if self.out else []
        words += ["--resume", resume] if resume else []
        return words + (["--deepspeed_config", str(self.settings_file())] if self.deepspeed_config else [])

    def settings_file(self) -> Path | None:
        """Return the file of DeepSpeed's keys that win over the recipe's, also where a profile is named."""
        from launch.profiles import deepspeed_settings

        return deepspeed_settings(self.deepspeed_config) if self.deepspeed_config else None

    def settings(self) -> dict[str, Any]:
        """Return DeepSpeed's keys that win over the recipe's."""
        from pretrain.settings import read_settings

        file = self.settings_file()
        return read_settings(file) if file else {}

    def request(self, recipe: Recipe, environment: Mapping[str, str], address: str | None, port: int) -> Request:
        """Return what the hosts must be ready for."""
        from launch.hosts.preflight import Request, places

        return Request(
            self.config,
            self.folder(recipe),
            places(recipe.data),
            deepspeed_config=self.settings_file(),
            address=address,
            port=port,
            environment=environment,
        )


def launch_run(
    config: Config,
    set_: Set = [],  # noqa: B006  typer copies it
    out: Out = None,
    resume: Resume = None,
    deepspeed_config: DeepspeedConfig = None,
    hostfile: Hostfile = None,
    include: Include = "",
    exclude: Exclude = "",
    restarts: Restarts = 3,
    min_hosts: Annotated[int, typer.Option(min=0, help="Hosts it needs; 0: all at first, one for restarts.")] = 0,
    max_hosts: Annotated[int, typer.Option(min=0, help="Hosts it uses, the others are spare; 0: all.")] = 0,
    master_addr: MasterAddr = None,
    master_port: MasterPort = 0,
    ssh: Ssh = "ssh",
    env: Env = [],  # noqa: B006
    env_file: EnvFile = None,
    check: Annotated[bool, typer.Option(help="Look first whether all hosts are ready: same code, data, ports.")] = True,
    stage: Annotated[
        Path | None, typer.Option(help="Folder on every host's own disk that gets verified copies of the data first.")
    ] = None,
    host_timeout: Annotated[float, typer.Option(min=5, help="Seconds without a word until a host is lost.")] = 30,
    grace: Grace = 60,
    dry_run: DryRun = False,
    calibrate: Calibrate = 20,
    as_json: Json = False,
) -> None:
    """Pretrain on one host or many: start the ranks, watch over them, save on signals, start again after failures."""
    from launch.hosts.controller import Job
    from launch.hosts.environment import for_ranks
    from launch.hosts.remote import Remote
    from launch.hosts.restarts import Elastic

    wish = Wish(config, set_, out, resume, deepspeed_config)
    recipe = wish.recipe()
    hosts = chosen_hosts(hostfile, include, exclude)
    refuse_contradictions(hosts, master_addr, min_hosts, max_hosts)
    variables, remote = for_ranks(env, env_file), Remote.by(ssh, host_timeout)
    if dry_run:
        _plan(wish, recipe, hosts[: max_hosts or None], variables, remote, calibrate, as_json=as_json)
        return
    job = Job(
        wish.command(resume),
        wish.folder(recipe),
        variables,
        address=master_addr,
        port=master_port,
        host_timeout_s=host_timeout,
        grace_s=grace,
    )
    checker = _checker(hosts[0], job, wish, recipe, remote) if check else None
    stager = _stager(remote, recipe, stage, variables) if stage else None
    raise typer.Exit(_run(hosts, job, wish, remote, Elastic(restarts, min_hosts, max_hosts), checker, stager))


def pretrain(
    config: Config,
    set_: Set = [],  # noqa: B006  typer copies it
    out: Out = None,
    resume: Resume = None,
    deepspeed_config: DeepspeedConfig = None,
    accelerators: Annotated[int, typer.Option(min=0, help="Ranks on this host; 0 = all GPUs, or 1 on a CPU.")] = 0,
    restarts: Restarts = 0,
    grace: Grace = 60,
    dry_run: DryRun = False,
    calibrate: Calibrate = 20,
    as_json: Json = False,
) -> None:
    """Pretrain on this host, and see that no process outlives the run."""
    from launch.hosts.controller import Job
    from launch.hosts.environment import for_ranks
    from launch.hosts.remote import Remote
    from launch.hosts.restarts import Elastic

    wish = Wish(config, set_, out, resume, deepspeed_config)
    recipe = wish.recipe()
    hosts = _this_host(accelerators)
    if dry_run:
        _plan(wish, recipe, hosts, for_ranks(), Remote(), calibrate, as_json=as_json)
        return
    job = Job(wish.command(resume), wish.folder(recipe), for_ranks(), grace_s=grace)
    raise typer.Exit(_run(hosts, job, wish, Remote(), Elastic(restarts)))


def _checker(first: Host, job: Job, wish: Wish, recipe: Recipe, remote: Remote) -> Check:
    """Return what asks hosts whether they are ready; an address that was given is that of the first of all."""
    from launch.hosts.preflight import preflight

    request = wish.request(recipe, job.environment, job.address, job.port)
    return lambda hosts: preflight(
        remote, hosts, replace(request, address=request.address if hosts[0] is first else None)
    )


def _stager(remote: Remote, recipe: Recipe, folder: Path, variables: Mapping[str, str]) -> Stage:
    """Return what brings the data to a folder on the disk of every host."""
    from launch.hosts.staging import stage

    return lambda hosts, report: stage(remote, hosts, recipe, folder, report, variables)


def _run(
    hosts: Sequence[Host],
    job: Job,
    wish: Wish,
    remote: Remote,
    elastic: Elastic,
    check: Check | None = None,
    stage: Stage | None = None,
) -> int:
    from launch.guard import hiding
    from launch.hosts.redaction import Redactor
    from launch.hosts.restarts import Run
    from launch.hosts.terminal import Terminal

    redact = Redactor({**os.environ, **job.environment})
    again = wish.command("auto")
    with hiding(redact), Terminal(redact) as terminal:
        return Run(hosts, job, again, remote, elastic, terminal.show, check, stage).run()


def _this_host(ranks: int) -> list[Host]:
    from launch.hosts.hostfile import Host
    from launch.start import ranks_here

    return [Host("localhost", tuple(range(ranks or ranks_here(most_on_cpu=1))))]


def chosen_hosts(hostfile: Path | None, include: str, exclude: str) -> list[Host]:
    """Return the hosts that the options name; this one without a hostfile."""
    from launch.hosts.hostfile import filtered, read_hostfile

    return filtered(read_hostfile(hostfile) if hostfile else _this_host(0), include, exclude)


def refuse_contradictions(hosts: Sequence[Host], address: str | None, least: int = 0, most: int = 0) -> None:
    """Raise `ConfigError` where options and hosts do not go together."""
    from launch.hosts.hostfile import refuse_loopback
    from shards.errors import ConfigError

    if least > len(hosts) or (most and least > most):
        raise ConfigError(f"--min-hosts {least} is more than there are", why=f"{len(hosts)} hosts, --max-hosts {most}")
    refuse_loopback(hosts, address)


def _plan(
    wish: Wish,
    recipe: Recipe,
    hosts: Sequence[Host],
    variables: Mapping[str, str],
    remote: Remote,
    calibrate: int,
    *,
    as_json: bool,
) -> None:
    """Show what would be run."""
    from launch.hosts.link import AGENT
    from launch.planning import dry_run, show_dry_run

    agents = {host.name: remote.command(host.name, AGENT) for host in hosts}
    found = dry_run(
        recipe,
        hosts={host.name: len(host.slots) for host in hosts},
        commands={**agents, "each rank": wish.command(wish.resume)},
        out=wish.folder(recipe),
        settings=wish.settings(),
        environment=variables,
        calibrate=calibrate,
    )
    show_dry_run(found, as_json=as_json)
