"""Command line of the generator: ``python -m shards.embedded.generate --out DIR [--stage STAGE]``."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from shards.embedded.generate.stages import STAGES, run_parallel
from shards.embedded.generate.workspace import Deadline


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shards.embedded.generate", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="working folder; a later run continues in it")
    parser.add_argument("--stage", choices=["all", *STAGES], default="all")
    parser.add_argument("--minutes", type=float, default=90, help="time for the chosen stages (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ID", help="these crystals (elements for the stage references)")
    options = parser.parse_args(arguments)
    started = time.time()
    whole = options.stage == "all"
    for stage in STAGES if whole else [options.stage]:
        only = options.only
        if whole and only and stage == "references":
            only = sorted({symbol for name in only for symbol in _symbols(name)})
        deadline = Deadline(started + 60 * options.minutes * (STAGES[stage] if whole else 1.0))
        code = run_parallel(stage, options.out, only, deadline, options.workers)
        if code:
            return code
    return 0


def _symbols(name: str) -> list[str]:
    """Element symbols of an id such as ``MgO_rocksalt``."""
    return re.findall(r"[A-Z][a-z]?", name.split("_")[0])


if __name__ == "__main__":
    sys.exit(main())
