"""A script that starts `matloom launch run` over hosts by ssh, with their hostfile in it."""

from __future__ import annotations

from launch.jobs.base import Job, header, shell
from shards.errors import ConfigError


def render(job: Job) -> str:
    """Return the script, or raise `ConfigError` where no hosts are named."""
    if not job.hosts:
        raise ConfigError("--ssh needs the names of the hosts", do="--hosts worker-0,worker-1")
    how = [
        "Run it on any host from which ssh reaches the others without a password. It checks the hosts, starts the",
        "ranks, passes signals on to them, writes a log a rank into the run's folder, and starts again after failures.",
    ]
    lines = [f"{host} slots={job.ranks_per_node}" for host in job.hosts]
    return "\n".join(
        [
            header(job, how),
            'mkdir -p -- "$out"',
            "",
            "# a host a line, and how many ranks it gets",
            "cat > \"$out/hosts\" <<'HOSTS'",
            *lines,
            "HOSTS",
            "",
            f"exec {shell(job.run_command())} \\",
            '    --hostfile "$out/hosts"',
            "",
        ]
    )
