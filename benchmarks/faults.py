"""Counts how often each fault of runs over two hosts went as it must; prints the table of docs/reliability.md. As root.

python -m benchmarks.faults --times 3            try every fault three times (most of an hour on an idle machine)
python -m benchmarks.faults rows.jsonl           the table of what was tried before
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

TESTS = "tests/launch"


def tried(times: int, rows: Path) -> None:
    """Run the tests of faults, several times."""
    tests = sorted(str(path) for path in Path(TESTS).glob("test_faults*.py"))
    for _ in range(times):
        command = [sys.executable, "-m", "pytest", "-q", "-m", "launch", *tests]
        subprocess.run(command, env={**os.environ, "MATLOOM_FAULTS": str(rows)}, check=False)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line of Markdown a fault, in groups: how it ends, in how long, and how often it did."""
    faults: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        faults[row["fault"]].append(row)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, group in faults.items():
        last = group[-1]
        seconds = [row["seconds"] for row in group if "seconds" in row]
        took = f"{median(seconds):.0f}, {max(seconds):.0f}" if seconds else ""
        good = sum(row["good"] for row in group)
        cells = [name, last["how"], last["within"], last["expected"], took, f"{good} of {len(group)}"]
        groups[last["group"]].append(f"| {' | '.join(map(str, cells))} |")
    lines = []
    for title, found in groups.items():
        head = "| fault | how | ends within | exit code | seconds: median, most | as it must |"
        lines += [f"## {title}", "", head, "|---|---|---|---|---|---|", *found, ""]
    return lines


def main() -> None:
    """Try, where that is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=Path, default=Path("faults.jsonl"))
    parser.add_argument("--times", type=int, default=0)
    options = parser.parse_args()
    if options.times:
        tried(options.times, options.rows)
    print("\n".join(table([json.loads(line) for line in options.rows.read_text().splitlines()])))


if __name__ == "__main__":
    main()
