"""`matloom launch check`: says whether the hosts are ready for a run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Annotated

import typer

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
from launch.run_cli import DeepspeedConfig, Wish, chosen_hosts, refuse_contradictions


def launch_check(
    config: Config,
    set_: Set = [],  # noqa: B006  typer copies it
    out: Out = None,
    deepspeed_config: DeepspeedConfig = None,
    hostfile: Hostfile = None,
    include: Include = "",
    exclude: Exclude = "",
    master_addr: MasterAddr = None,
    master_port: MasterPort = 0,
    ssh: Ssh = "ssh",
    env: Env = [],  # noqa: B006
    env_file: EnvFile = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a host may take for an answer.")] = 60,
    as_json: Json = False,
) -> None:
    """Check that all hosts have the same code, recipe and data, and reach each other; exit code 8 where one fails."""
    from launch.findings import as_json as plain
    from launch.findings import as_lines, failures
    from launch.guard import hiding
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
    redact = Redactor({**os.environ, **variables})
    with hiding(redact):
        findings = preflight(Remote.by(ssh), hosts, request, lambda line: typer.echo(f"{line} ...", err=True))
    text = json.dumps(plain(findings), indent=1) if as_json else "\n".join(as_lines(findings))
    typer.echo(redact(text))
    raise typer.Exit(HostError.exit_code if failures(findings) else 0)
