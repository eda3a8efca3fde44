"""A script that every host runs, with torchrun."""

from __future__ import annotations

from launch.jobs.asking import APART, TELL_CHILDREN, caught, waited
from launch.jobs.base import PORT, Job, forgotten, header, shell, staged


def render(job: Job) -> str:
    """Return the script."""
    first = job.hosts[0] if job.hosts else None
    how = [
        "Run it on every host at the same time, by your scheduler or by parallel ssh. They meet at "
        + (f"{first}," if first else "MASTER_ADDR, which you export,"),
        f"port MASTER_PORT or {PORT}. A rank that fails ends them all; started again on all hosts, they go on from the",
        "newest checkpoint.",
    ]
    address = f'"${{MASTER_ADDR:={first}}}"' if first else '"${MASTER_ADDR:?the name of the first host}"'
    if job.nodes == 1:
        address = '"${MASTER_ADDR:=127.0.0.1}"'
    torchrun = [
        job.python, "-m", "torch.distributed.run", "--nnodes", str(job.nodes), "--nproc-per-node",
        str(job.ranks_per_node), "--max-restarts", "0", "--rdzv-backend", "c10d", "--rdzv-id", job.label,
    ]  # fmt: skip
    return "\n".join(
        [
            header(job, how),
            f": {address}",
            forgotten(),
            *staged(job),
            caught(TELL_CHILDREN, "told to the ranks themselves, since torchrun would give them 30 s"),
            f"{APART}{shell(torchrun)} \\",
            f'    --rdzv-endpoint "$MASTER_ADDR:${{MASTER_PORT:-{PORT}}}" \\',
            f"    {shell(job.module())} &",
            waited(),
        ]
    )
