"""Whole pretraining runs on a toy data set: in forked ranks that a test may hold, signal, stop and kill."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.ports import free_port
from tests.distributed.ranks import FIXED, ROOT, TIMEOUT_S, forking_context, spawn

SCRIPT = ROOT / "launch" / "pretrain.py"
PER_EPOCH = 3
RECIPE = """
name = "toy"
seed = 5
[data]
path = "{data}"
batch_size = 12
[modalities.a]
encoder = {{ kind = "vector", hidden = 16, dim = 8 }}
augment = {{ noise = 0.05 }}
[modalities.b]
encoder = {{ kind = "vector", hidden = 16, dim = 8 }}
augment = {{ gaussian_noise = 0.05, drop = 0.1, drop_epochs = 20 }}
[modalities.dos]
[modalities.dos.encoder]
kind = "spectrum_transformer"
patch = 6
depth = 1
heads = 2
head_dim = 4
mlp_dim = 16
dim = 8
dropout = 0.2
summary_bins = [4]
[projection]
kind = "mlp"
dim = 8
hidden = 16
dropout = 0.1
[objective]
kind = "anchored"
anchor = "a"
[optim]
lr = 1e-2
epochs = {epochs}
warmup_epochs = 2
[evaluation]
every_epochs = {evaluate}
complete_only = false
[checkpoint]
every_steps = {save}
keep = 2
keep_best = false
[deepspeed]
zero_optimization = {{ stage = 1 }}
[tracking]
experiment = "tests"
"""
# what is measured of the machine, and differs from run to run
MACHINE = ("seconds", "samples_per_s", "memory_gib", "mfu")


@dataclass
class Workshop:
    """A folder with a recipe; runs go into its sub-folders."""

    folder: Path
    recipe: Path

    @classmethod
    def make(cls, folder: Path, data: Path, *, epochs: int, evaluate: int, save: int) -> Workshop:
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE.format(data=data, epochs=epochs, evaluate=evaluate, save=save))
        return cls(folder, recipe)

    def environment(self) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "TORCH_EXTENSIONS_DIR": str(self.folder / "extensions"),
            "DS_ACCELERATOR": "cpu",
        }

    def arguments(self, out: str, *more: str) -> list[str]:
        return ["--config", str(self.recipe), "--out", str(self.folder / out), *more]

    def metrics(self, out: str) -> list[dict[str, float]]:
        """Lines of metrics without what is measured of the machine."""
        lines = (self.folder / out / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith(MACHINE)} for line in lines]

    def copy(self, source: str, target: str) -> Path:
        shutil.copytree(self.folder / source, self.folder / target)
        return self.folder / target / "checkpoints"

    def checkpoints(self, out: str) -> list[int]:
        """Steps of the published checkpoints."""
        folders = (self.folder / out / "checkpoints").glob("step-*")
        return sorted(int(folder.name.removeprefix("step-")) for folder in folders)

    def export(self, out: str) -> bytes:
        return (self.folder / out / "best" / "model.safetensors").read_bytes()

    def same(self, out: str, reference: str) -> bool:
        """Whether a run equals another, bit for bit."""
        assert self.metrics(out) == self.metrics(reference)
        return self.export(out) == self.export(reference)

    def close(self, out: str, reference: str) -> bool:
        """Whether a run learned the same from the same samples, step by step; sums are in the order of its ranks."""
        found, expected = self.metrics(out), self.metrics(reference)
        assert [line.keys() for line in found] == [line.keys() for line in expected]
        return all(
            math.isclose(mine["loss"], theirs["loss"], rel_tol=1e-5)
            for mine, theirs in zip(found, expected, strict=True)
            if "loss" in mine
        )

    def run(
        self, *jobs: Sequence[str], world: int = 1, patch: Callable[[], None] | None = None
    ) -> list[tuple[int, str]]:
        """Run jobs one after another in the same ranks; exit code and stderr of the first rank for each."""
        return spawn(mains, world, str(self.folder), jobs, patch)[0]


def mains(
    cwd: str, jobs: Sequence[Sequence[str]], patch: Callable[[], None] | None = None, script: str = "pretrain"
) -> list[tuple[int, str]]:
    """Run ``main`` of a script of launch/ for each job in this process; exit codes and what was written."""
    os.chdir(cwd)
    main = importlib.import_module(f"launch.{script}").main
    if patch:
        patch()
    warnings.simplefilter("always")
    results = []
    for job in jobs:
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as told:
            code = main(list(job))
        results.append((code, errors.getvalue() + told.getvalue()))
    return results


class Ranks:
    """Ranks that run one job and end like processes of their own; used as a context, which leaves none behind.

    Parameters
    ----------
    shop : Workshop
        Its folder gets the ranks' output, ``rank-0.log`` and so on.
    world : int
        Number of ranks.
    job : sequence of str
        Arguments of launch/pretrain.py.
    patch : callable, optional
        Called in each rank before that.
    """

    def __init__(self, shop: Workshop, world: int, job: Sequence[str], patch: Callable[[], None] | None = None) -> None:
        context = forking_context()
        self.logs = [shop.folder / f"rank-{rank}.log" for rank in range(world)]
        port, self.processes = free_port(), []
        for rank in range(world):
            environment = {
                **os.environ, **FIXED, **shop.environment(), "RANK": str(rank), "WORLD_SIZE": str(world),
                "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
            process = context.Process(target=_run, args=(str(self.logs[rank]), environment, list(job), patch))
            process.start()
            self.processes.append(process)
        self.pids = [process.pid for process in self.processes]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.pids[rank], number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> list[int | None]:
        """Wait for all; the exit codes, -N where signal N ended a rank, None where one goes on."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def told(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def _run(log: str, environment: dict[str, str], job: list[str], patch: Callable[[], None] | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "w", buffering=1) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
    os.chdir(Path(log).parent)
    main = importlib.import_module("launch.pretrain").main
    if patch:
        patch()
    os._exit(main(job))


class Hold:
    """A place in which ranks wait until the test lets them go on.

    Parameters
    ----------
    folder : Path
        Made here; holds markers: who has come, and who may go.
    """

    def __init__(self, folder: Path, world: int) -> None:
        self.folder, self.world = folder, world
        folder.mkdir()

    def here(self) -> None:
        """Wait; called in a rank."""
        rank = os.environ["RANK"]
        (self.folder / f"reached-{rank}").touch()
        go = str(self.folder / f"go-{rank}")
        # not a FIFO: a signal may make a rank open it anew, after it was let go; and no function of Python's: whoever
        # writes this thread's stack meanwhile would follow frames that come and go, and now and then end the process
        while not os.access(go, os.F_OK):
            time.sleep(0.02)

    def reached(self, *ranks: int, alive: Callable[[], bool] = lambda: True) -> None:
        """Return once these ranks wait, all by default."""
        deadline = time.monotonic() + TIMEOUT_S
        markers = [self.folder / f"reached-{rank}" for rank in ranks or range(self.world)]
        while not all(marker.exists() for marker in markers):
            assert time.monotonic() < deadline and alive(), (
                f"not reached: {[m.name for m in markers if not m.exists()]}"
            )
            time.sleep(0.02)

    def release(self, *ranks: int) -> None:
        """Let these ranks, which wait, go on; all by default."""
        for rank in ranks or range(self.world):
            (self.folder / f"go-{rank}").touch()
