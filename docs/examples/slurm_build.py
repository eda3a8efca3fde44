"""Build shards on SLURM: Dask workers as jobs, `matloom shards build` on their scheduler.

python docs/examples/slurm_build.py --jobs 20 --partition cpu -- recipe.toml /scratch/shards/mine
"""

from __future__ import annotations

import argparse
import subprocess
import sys


def main() -> int:
    """Start the workers, build, and give them back."""
    from dask_jobqueue import SLURMCluster

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--cores", type=int, default=32, help="cores of a job; a worker process each")
    parser.add_argument("--memory", default="64GB", help="memory of a job")
    parser.add_argument("--partition", default=None)
    parser.add_argument("--walltime", default="04:00:00")
    parser.add_argument("build", nargs="+", help="arguments of `matloom shards build`")
    options = parser.parse_args()
    with SLURMCluster(
        cores=options.cores,
        processes=options.cores,  # chunks are computed by Python, one at a time in a process
        memory=options.memory,
        queue=options.partition,
        walltime=options.walltime,
    ) as cluster:
        cluster.scale(jobs=options.jobs)
        command = [sys.executable, "-m", "launch.cli", "shards", "build", *options.build]
        return subprocess.call([*command, "--scheduler", cluster.scheduler_address])


if __name__ == "__main__":
    sys.exit(main())
