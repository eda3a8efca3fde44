"""`matloom launch check`: says whether the hosts are ready for a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from launch.options import Config, Json, Out, Set
from launch.run_cli import DeepspeedConfig, Wish, chosen_hosts, refuse_contradictions


def launch_check(
    config: Config,
    set_: Set = [],  # noqa: B006  typer copies it
    out: Out = None,
    deepspeed_config: DeepspeedConfig = None,
    hostfile: Annotated[Path | None, typer.Option(help="A host a line, 'NAME slots=RANKS'; none: this host.")] = None,
    include: Annotated[str, typer.Option(help="Only these, as in 'worker-0@worker-1:0,2'.")] = "",
    exclude: Annotated[str, typer.Option(help="All but these.")] = "",
    master_addr: Annotated[str | None, typer.Option(help="Of the first host; default: its name.")] = None,
    master_port: Annotated[int, typer.Option(min=0, max=65535, help="On the first host; 0: a free one.")] = 0,
    ssh: Annotated[str, typer.Option(help="How to reach hosts, as in 'ssh -F config'.")] = "ssh",
    env: Annotated[
        list[str], typer.Option("--env", metavar="NAME[=VALUE]", help="Give the ranks this variable too.")
    ] = [],  # noqa: B006
    env_file: Annotated[
        Path | None, typer.Option(help="NAME=VALUE lines for the ranks; of mode 600 where one is a secret.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a host may take for an answer.")] = 60,
    as_json: Json = False,
) -> None:
    """Check that all hosts have the same code, recipe and data, and reach each other; exit code 8 where one fails."""
    from launch.findings import as_json as plain
    from launch.findings import as_lines
    from launch.hosts.environment import for_ranks
    from launch.hosts.preflight import preflight
    from launch.hosts.redaction import Redactor
    from launch.hosts.remote import Remote
    from shards.errors import HostError

    wish = Wish(config, set_, out, None, deepspeed_config)
    hosts = chosen_hosts(hostfile, include, exclude)
    refuse_contradictions(hosts, master_addr)
    variables = for_ranks(env, env_file)
    request = replace(wish.request(wish.recipe(), variables, master_addr, master_port), timeout_s=timeout)
    findings = preflight(Remote.by(ssh), hosts, request, lambda line: typer.echo(f"{line} ...", err=True))
    text = json.dumps(plain(findings), indent=1) if as_json else "\n".join(as_lines(findings))
    typer.echo(Redactor(variables)(text))
    raise typer.Exit(HostError.exit_code if any(finding.status == "failed" for finding in findings) else 0)
