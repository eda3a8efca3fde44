"""`matloom launch check`: says whether the hosts are ready for a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from launch.options import Config, Json, Out, Set


def launch_check(
    config: Config,
    set_: Set = [],  # noqa: B006  typer copies it
    out: Out = None,
    deepspeed_config: Annotated[
        Path | None, typer.Option("--deepspeed-config", "--deepspeed_config", help="DeepSpeed JSON of the run.")
    ] = None,
    hostfile: Annotated[Path | None, typer.Option(help="A host a line, 'NAME slots=RANKS'; none: this host.")] = None,
    include: Annotated[str, typer.Option(help="Only these, as in 'worker-0@worker-1:0,2'.")] = "",
    exclude: Annotated[str, typer.Option(help="All but these.")] = "",
    master_addr: Annotated[str | None, typer.Option(help="Of the first host; default: its name.")] = None,
    master_port: Annotated[int, typer.Option(min=0, max=65535, help="On the first host; 0: a free one.")] = 0,
    ssh: Annotated[str, typer.Option(help="How to reach hosts, as in 'ssh -F config'.")] = "ssh",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a host may take for an answer.")] = 60,
    as_json: Json = False,
) -> None:
    """Check that all hosts have the same code, recipe and data, and reach each other; exit code 8 where one fails."""
    from launch.findings import as_json as plain
    from launch.findings import as_lines
    from launch.hosts.hostfile import Host, filtered, read_hostfile
    from launch.hosts.preflight import Request, places, preflight
    from launch.hosts.remote import Remote
    from pretrain.config import load_recipe
    from shards.errors import HostError

    recipe = load_recipe(config, set_)
    hosts = filtered(read_hostfile(hostfile) if hostfile else [Host("localhost", (0,))], include, exclude)
    request = Request(
        config,
        out or Path("runs") / recipe.name,
        places(recipe.data),
        deepspeed_config=deepspeed_config,
        address=master_addr,
        port=master_port,
        timeout_s=timeout,
    )
    findings = preflight(Remote.by(ssh), hosts, request, lambda line: typer.echo(f"{line} ...", err=True))
    typer.echo(json.dumps(plain(findings), indent=1) if as_json else "\n".join(as_lines(findings)))
    raise typer.Exit(HostError.exit_code if any(finding.status == "failed" for finding in findings) else 0)
