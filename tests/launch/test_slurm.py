"""Runs under a real SLURM: two nodes, a controller, a daemon each.

An encoder that a test brings along holds the ranks in a step until they are let go, so nothing depends on luck.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import psutil
import pytest

from pretrain.signals import PREEMPTED, REQUEST
from tests.distributed.held import EXPECTED, WORLD, environment, finished
from tests.distributed.runs import ROOT, SCRIPT, Hold, Workshop
from tests.launch.namespaces import Cluster, wait_for
from tests.launch.slurm import Slurm, missing

pytestmark = pytest.mark.launch

CANARY = "canary-5f1d0c77"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def slurm(pair: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch, Slurm(pair, folder) as running:
        # logs of jobs are written to where they are submitted
        patch.setattr(pair, "cwd", folder)
        yield running


class Submitted:
    """The job file that `matloom launch plan` writes, submitted as it is, and its ranks held in a step.

    Parameters
    ----------
    slurm, shop
        Where, and what.
    out : str
        Name of the run.
    options
        More for the command.
    held : bool
        Whether they are held.
    """

    def __init__(self, slurm: Slurm, shop: Workshop, out: str, *options: object, held: bool = True) -> None:
        self.slurm, self.shop, self.out = slurm, shop, shop.folder / out
        self.hold = Hold(shop.folder / f"hold-{out}", WORLD)
        self.file = slurm.folder / f"{out}.sbatch"
        plan = ["--slurm", "--nodes", WORLD, "--gpus-per-node", 2, "--ranks-per-node", 1, "--time", 30, "--grace", 30]
        plan += ["--folder", ROOT, "--out", self.out, "--write", self.file, *options]
        slurm.run(sys.executable, "-m", "launch.cli", "launch", "plan", shop.recipe, *plan)
        variables = environment(shop, out, self.hold, "step" if held else "-")
        self.number = slurm.submit(self.file, env=variables)
        self.log = slurm.folder / f"toy-{self.number}.log"
        if held:
            self.hold.reached(alive=lambda: slurm.job(self.number)["JobState"] not in ENDED)

    def asked(self) -> None:
        """Let the ranks go once one knows that the run is to end."""
        wait_for((self.out / REQUEST).exists)
        self.hold.release()

    def state(self, *states: str) -> dict[str, str]:
        """Wait until the job is in one of some states."""
        return self.slurm.wait(self.number, *states)

    def told(self) -> str:
        """Return what the job and its ranks have written."""
        logs = [self.log, *sorted(self.out.glob("logs/**/*.*"))]
        return "\n".join(f"== {log}\n{log.read_text()}" for log in logs if log.is_file())

    def ranks(self) -> list[psutil.Process]:
        """Return the ranks that run."""
        words = [str(self.out), "launch.pretrain"]
        return [
            process
            for node in self.slurm.cluster.nodes
            for process in node.processes()
            if set(words) <= set(process.cmdline()) and process.name() != "srun"
        ]


def test_srun(slurm: Slurm, shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks a node, and no other launcher: the script of the docs as it stands there."""
    finished(shop, shop.arguments("whole-4"), world=4)
    monkeypatch.setattr(slurm.cluster, "cwd", ROOT)
    script = ROOT / "docs" / "examples" / "launch" / "srun.sh"
    variables = {"RECIPE": str(shop.recipe), "OUT": str(shop.folder / "srun")}
    slurm.run(script, "--nodes=2", "--ntasks-per-node=2", env=variables)
    assert shop.same("srun", "whole-4")


def test_deepspeeds_launcher_within_an_allocation(slurm: Slurm, shop: Workshop, whole: str) -> None:
    hostfile = slurm.cluster.hostfile(1)
    slurm.run(
        "salloc", "-N2", "--ntasks-per-node=1", "deepspeed", "--hostfile", hostfile, "--launcher", "slurm", SCRIPT,
        *shop.arguments("deepspeed"),
    )  # fmt: skip
    assert shop.same("deepspeed", whole)


def test_a_script_that_forgets_srun_is_told_so(slurm: Slurm, shop: Workshop) -> None:
    command = f"{sys.executable} {SCRIPT} {' '.join(shop.arguments('alone'))}"
    number = slurm.submit("-N2", "--ntasks-per-node=1", "-o", "alone.log", "--wrap", command)
    # it waits for nobody
    assert slurm.wait(number, *ENDED)["ExitCode"] == "2:0"
    assert "try:   start it by 'srun python launch/pretrain.py" in (slurm.folder / "alone.log").read_text()


def test_ranks_of_odd_steps(slurm: Slurm) -> None:
    """Steps whose nodes differ: the ranks are numbered through, and all name the same place to meet."""
    program = "import os; from launch.slurm import slurm_place; print(*slurm_place(os.environ).values())"
    task = ["/usr/bin/env", f"PYTHONPATH={ROOT}", sys.executable, "-c", program]
    for step in (
        ["-N2", "-n3", "--ntasks-per-node=2", *task],
        ["-N2", "-n3", "-m", "cyclic", "--export=NONE", *task],
        # two jobs in one
        ["-N1", "-n1", *task, ":", "-N1", "-n2", *task],
    ):
        ranks = [line.split() for line in slurm.run("srun", *step).splitlines()]
        assert sorted(rank[0] for rank in ranks) == ["0", "1", "2"], step
        assert {(rank[1], rank[4]) for rank in ranks} == {("3", "node1")}
        assert len({rank[5] for rank in ranks}) == 1
        assert sorted(rank[2:4] for rank in ranks) == [["0", "1"], ["0", "2"], ["1", "2"]]


def test_a_job_that_is_warned_saves_and_queues_itself_again(slurm: Slurm, shop: Workshop, whole: str) -> None:
    """What `--signal` does near the end of the time limit: USR1 to the tasks of all steps, not to the script."""
    secrets = shop.folder / "secrets.env"
    secrets.touch(mode=0o600)
    secrets.write_text(f"MLFLOW_TRACKING_PASSWORD={CANARY}\n")
    job = Submitted(slurm, shop, "warned", "--env-file", secrets)
    for rank in job.ranks():
        assert CANARY not in " ".join(rank.cmdline())
        # each rank has read the file itself
        assert not [value for value in rank.environ().values() if CANARY in value]
    slurm.run("scancel", "--signal=USR1", job.number)
    job.asked()
    job.state("PENDING")
    saved = json.loads((job.out / PREEMPTED).read_text())
    assert saved["step"] == EXPECTED["step"] and "USR1 to rank" in saved["reason"]
    assert job.state("COMPLETED")["Restarts"] == "1", job.told()
    assert shop.same("warned", whole)
    told = job.told() + job.file.read_text() + slurm.run("scontrol", "show", "job", "-d", job.number)
    assert CANARY not in told
    # a log a rank and attempt
    assert len(list(job.out.glob(f"logs/slurm-{job.number}-[01]/rank-0000[01].log"))) == 4


def test_scancel_ends_a_job_for_good_and_it_saves(slurm: Slurm, shop: Workshop) -> None:
    job = Submitted(slurm, shop, "cancelled")
    slurm.run("scancel", job.number)
    job.asked()
    slurm.idle()
    state = job.state("CANCELLED", "PENDING", "RUNNING")
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0"), job.told()
    assert max(shop.checkpoints("cancelled")) == EXPECTED["step"]
    assert job.ranks() == []


def test_a_rank_that_is_killed_starts_the_job_again(slurm: Slurm, shop: Workshop, whole: str) -> None:
    job = Submitted(slurm, shop, "killed", "--restarts", 1)
    job.ranks()[0].kill()
    job.hold.release()
    job.state("PENDING")
    assert job.state("COMPLETED", "FAILED")["JobState"] == "COMPLETED", job.told()
    assert "failed with 137" in job.log.read_text()
    assert shop.same("killed", whole)


def test_what_another_attempt_does_not_mend_is_not_tried_again(slurm: Slurm, shop: Workshop) -> None:
    job = Submitted(slurm, shop, "wrong", "--set", "data.path='/nowhere'", held=False)
    state = job.state(*ENDED)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "3:0", "0")
    assert "/nowhere" in job.log.read_text()


def test_a_node_that_dies_gives_the_job_back(slurm: Slurm, shop: Workshop, whole: str) -> None:
    job = Submitted(slurm, shop, "node-down")
    dead = slurm.cluster.nodes[1]
    slurm.kill_node(dead)
    job.state("PENDING")
    assert job.ranks() == []
    job.hold.release()
    slurm.start_node(dead)
    state = job.state(*ENDED)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), job.told()
    assert shop.same("node-down", whole)


@pytest.mark.slow
def test_the_time_limit_warns_and_then_ends_the_job(slurm: Slurm, shop: Workshop) -> None:
    """With SLURM's own clock, whose minutes cannot be made shorter."""
    warned = Submitted(slurm, shop, "limit", "--grace", 100)
    slurm.run("scontrol", "update", f"JobId={warned.number}", "TimeLimit=2")
    warned.asked()
    state = warned.state("PENDING")
    assert state["Restarts"] == "1"
    assert "USR1" in json.loads((warned.out / PREEMPTED).read_text())["reason"]
    slurm.run("scancel", warned.number)
    slurm.idle()
    # ranks that do not save in time: TERM, and KillWait later KILL
    stuck = Submitted(slurm, shop, "stuck")
    slurm.run("scontrol", "update", f"JobId={stuck.number}", "TimeLimit=1")
    state = stuck.state(*ENDED)
    assert (state["JobState"], state["Restarts"]) == ("TIMEOUT", "0")
    slurm.idle()
    assert stuck.ranks() == []
