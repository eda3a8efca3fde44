"""The stages in their order, and running one of them in one or several processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

from shards.embedded.generate.workspace import Deadline, Workspace
from shards.errors import DataError

# Share of the minutes that have passed when a stage of a whole run must stop starting new materials.
STAGES = {
    "relax": 1.0,
    "references": 1.0,
    "scf": 0.6,
    "gap": 0.65,
    "eos": 0.8,
    "text": 1.0,
    "assemble": 1.0,
}


def run_stage(stage: str, out: Path, only: list[str] | None, deadline: Deadline) -> None:
    """Run one stage in this process; several processes may run the same one.

    Parameters
    ----------
    stage
        One of `STAGES`.
    out
        The working folder; the files of the set appear in ``out/dft_crystals``.
    only
        Ids (element symbols for ``references``), or None for all.
    deadline
        No material is started after it.
    """
    space = Workspace(out)
    if stage == "relax":
        from shards.embedded.generate.relax import relax_all

        return relax_all(space, only, deadline)
    if stage == "references":
        from shards.embedded.generate.references import reference_all

        return reference_all(space, only, deadline)
    if stage == "assemble":
        from shards.embedded.generate.assemble import assemble

        return assemble(space, out / "dft_crystals")

    from shards.embedded.generate.order import dft_order

    crystals = {name: space.read("relaxed", name) for name in space.names("relaxed")}
    names = [n for n in dft_order(crystals) if only is None or n in only]
    if stage == "scf":
        from shards.embedded.generate.electronic import solve_all

        return solve_all(space, names, deadline)
    if stage == "gap":
        from shards.embedded.generate.electronic import recheck_gaps

        return recheck_gaps(space, names, deadline)
    if stage == "eos":
        from shards.embedded.generate.eos import eos_all

        return eos_all(space, names, deadline)
    from shards.embedded.generate.describe import describe_all

    return describe_all(space, [n for n in crystals if only is None or n in only], deadline)


def _worker(stage: str, out: Path, only: list[str] | None, deadline: Deadline) -> None:
    try:
        run_stage(stage, out, only, deadline)
    except DataError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def run_parallel(stage: str, out: Path, only: list[str] | None, deadline: Deadline, workers: int) -> int:
    """Run one stage in several fresh single-threaded processes; returns the largest exit code."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["PYTHONHASHSEED"] = "0"  # robocrys words its lists in set order
    count = 1 if stage == "assemble" else workers
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(stage, out, only, deadline)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)
