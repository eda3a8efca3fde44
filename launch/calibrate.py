"""Some real steps of a recipe, to know what one takes: one rank of this host, with its share of the batch.

The steps run in a process of their own, with the run's engine, data, objective and settings, in a temporary folder.
Nothing is recorded and nothing stays. What is measured is a `Work`, from which `launch.estimates` works out more ranks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.estimates.cluster import Link
    from launch.estimates.work import Work
    from pretrain.config import Recipe

ROOT = Path(__file__).resolve().parents[1]
STEPS = 20
PAUSE_S = 0.05
TASK, FOUND, FAILED, TOLD = "task.json", "measured.json", "failed.json", "told.log"


def calibrate(recipe: Recipe, settings: Mapping[str, Any], *, world: int, here: int = 1, steps: int = STEPS) -> Work:
    """Make some optimizer steps in a child process and return what they took.

    Parameters
    ----------
    recipe : Recipe
        What is to be trained.
    settings : mapping
        DeepSpeed's keys that win over the recipe's.
    world : int
        Ranks of the run: the child gets the first one's share of each batch.
    here : int
        Ranks of the run on each host, which share its cores.
    steps : int
        Optimizer steps to measure.

    Raises
    ------
    ConfigError, DataError, ...
        Those of the run itself, as the child met them.
    """
    from launch.estimates.work import read_work

    with tempfile.TemporaryDirectory(prefix="matloom-calibrate-") as folder:
        # URLs keep their secrets here, which no record has: the folder is the user's alone
        tables = {**recipe.model_dump(mode="json"), "data": _with_places(recipe)}
        task = {"recipe": tables, "settings": dict(settings), "world": world, "steps": steps}
        (Path(folder) / TASK).write_text(json.dumps(task))
        command = [sys.executable, "-m", "launch.estimates.measure", folder]
        run_children(command, [_environment(here, folder)], Path(folder))
        return read_work(Path(folder) / FOUND)


def _with_places(recipe: Recipe) -> dict[str, Any]:
    data = recipe.data.model_dump(mode="json")
    data["path"], data["overlays"] = recipe.data.path, list(recipe.data.overlays)
    for table, entry in zip(data["mix"], recipe.data.mix, strict=True):
        table["path"], table["overlays"] = entry.path, list(entry.overlays)
    return data


def _environment(here: int, folder: str) -> dict[str, str]:
    """Return that of a rank alone, with the threads that one of ``here`` ranks gets; it writes to ``folder``."""
    place = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    mine = {name: value for name, value in os.environ.items() if name not in place}
    mine.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // here)))
    mine["PYTHONPATH"] = f"{ROOT}{os.pathsep}{mine.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    return {**mine, "TMPDIR": folder}


def measure_link() -> Link:
    """Return latency and bandwidth between two ranks of this host, on what they would use: NCCL or gloo."""
    from launch.estimates.cluster import Link
    from pretrain.ports import free_port

    with tempfile.TemporaryDirectory(prefix="matloom-calibrate-") as folder:
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [
            {**_environment(2, folder), **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)
        ]
        run_children([sys.executable, "-m", "launch.estimates.links", folder], ranks, Path(folder))
        found = json.loads((Path(folder) / FOUND).read_text())
    return Link(latency=f"{found['latency']!r} s", bandwidth=f"{found['bandwidth']!r} B/s")


def run_children(command: list[str], environments: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Run children that end with this process, whatever ends it; raise what the first one says that fails."""
    with ExitStack() as stack:
        children = []
        for environment in environments:
            told = stack.enter_context((folder / TOLD).open("ab"))
            # stdin is a pipe that closes with this process, which a child looks for; a session of its own: Ctrl-C is
            # for this process
            child = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=told, stderr=told, start_new_session=True
            )
            stack.callback(_end, child)
            children.append(child)
        code = _first_failure(children)
    if code:
        raise _failure(code, folder)


def _first_failure(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until one fails, for which others may wait until gloo's time is over, or until all are done: 0."""
    while True:
        codes = [child.poll() for child in children]
        if any(codes) or None not in codes:
            return next((code for code in codes if code), 0)
        time.sleep(PAUSE_S)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def end_with_the_parent(folder: Path) -> None:
    """Have this process, a child, end when its parent does, whatever ends that, and leave nothing."""

    def watch() -> None:
        # not sys.stdin: whoever reads that in a thread keeps the interpreter from ending
        os.read(0, 1)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _failure(code: int, folder: Path) -> Exception:
    from shards import errors

    if (folder / FAILED).exists():
        said = json.loads((folder / FAILED).read_text())
        return getattr(errors, said.pop("kind"), errors.MatloomError)(**said)
    last = (folder / TOLD).read_text(errors="replace").strip().splitlines()[-3:]
    return errors.MatloomError(
        f"the calibration ended with exit code {code}", why=" / ".join(last) or None, do="--calibrate 0 leaves it out"
    )
