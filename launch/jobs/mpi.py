"""A script for Open MPI's mpirun."""

from __future__ import annotations

import shlex

from launch.hosts.environment import NAMES, OWN, PREFIXES
from launch.jobs.asking import APART, TELL_LAUNCHER, caught, waited
from launch.jobs.base import Job, forgotten, header, shell, staged
from shards.staged import STAGE

# mpirun passes its own on
UNNAMED = {"OMPI_MCA_"}


def render(job: Job) -> str:
    """Return the script for a host from which mpirun reaches the others."""
    how = ["Run it on one host; mpirun reaches the others by ssh, or by the scheduler in whose allocation it stands."]
    if not job.hosts and job.nodes > 1:
        how.append("Elsewhere name the hosts: export OMPI_MCA_orte_default_hostfile=FILE, lines of 'NAME slots=RANKS'.")
    return script(job, how)


def script(job: Job, how: list[str]) -> str:
    """Return the script, which says of itself how it is started."""
    mpirun = ["mpirun", "--bind-to", "none"]
    mpirun += ["--host", ",".join(f"{host}:{job.ranks_per_node}" for host in job.hosts)] if job.hosts else []
    once = [*mpirun, "-np", str(job.nodes), "--map-by", "ppr:1:node"]
    ranks = [*mpirun, "-np", str(job.world), "--map-by", f"ppr:{job.ranks_per_node}:node"]
    return "\n".join(
        [
            header(job, how),
            forgotten(),
            *exported(job),
            *staged(job, f'{shell(once)} \\\n    "${{exported[@]}}" \\\n    '),
            *([f"exported+=(-x {STAGE})"] if job.stage else []),
            caught(TELL_LAUNCHER, "mpirun passes USR1 on to the ranks; by TERM or INT it would end them"),
            f"{APART}{shell(ranks)} \\",
            '    "${exported[@]}" \\',
            f"    {shell(job.rank_command())} &",
            waited(),
        ]
    )


def exported(job: Job) -> list[str]:
    """Return the lines that set ``exported`` to mpirun's options for the variables of the ranks."""
    wanted = [f"{prefix}.*" for prefix in sorted({*PREFIXES} - UNNAMED)] + sorted({*NAMES, *job.env})
    return [
        f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{job.cpus or 1}}}"',
        "# only names stand on the command line; the values go through mpirun's own connections",
        "exported=()",
        f"wanted={shlex.quote('|'.join(wanted))}",
        f"own={shlex.quote('|'.join(sorted({*OWN, *([STAGE] if job.stage else [])})))}",
        "while read -r name; do",
        '    if [[ $name =~ ^($wanted)$ && ! $name =~ ^($own)$ ]]; then exported+=(-x "$name"); fi',
        "done < <(compgen -e)",
    ]
