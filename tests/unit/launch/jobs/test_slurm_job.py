"""The batch script, with recorded commands in place of SLURM's; tests/launch/test_slurm.py has the real ones."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings

from launch.jobs.base import render
from tests.unit.launch.jobs.test_jobs import EXAMPLES, RECORD, ROOT, job, run, words

# ends with $CODE, and leaves behind what a run that was asked to end does
SRUN = (
    RECORD
    + '[ -z "$TOLD" ] || echo "$TOLD" >&2\n'
    + '[ -z "$STEP" ] || echo "{\\"step\\": $STEP}" > "$OUT/preempted.json"\nexit "${CODE:-0}"\n'
)
STUBS = {"srun": SRUN, "scontrol": RECORD, "python3": RECORD}
ENVIRONMENT = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "STEP": "",
    "TOLD": "",
}
REQUEUE = ["scontrol", "requeue", "12"]


class Queue:
    """A job that runs again and again; each time, whether it has asked for another."""

    def __init__(self, folder: Path, **more: object) -> None:
        self.folder = folder
        self.text = render("slurm", job(folder=folder, **more))

    def attempt(self, code: int, step: str = "", told: str = "") -> tuple[int, bool]:
        record = self.folder / "record"
        for call in record.iterdir() if record.exists() else ():
            call.unlink()
        out = str(self.folder / "runs/demo")
        variables = {**ENVIRONMENT, "CODE": str(code), "STEP": step, "OUT": out, "TOLD": told}
        ended, calls = run(self.text, self.folder, STUBS, **variables)
        return ended, REQUEUE in calls


@given(recipe=words, out=words, override=words, env_file=words, stage=words)
@settings(max_examples=20, deadline=None)
@example(
    recipe="$(touch PWNED).toml", out="%t'`touch PWNED`'\n", override="a=$(touch PWNED)", env_file="--", stage="-n x"
)
def test_nothing_that_a_user_writes_becomes_a_command(
    recipe: str, out: str, override: str, env_file: str, stage: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = folder / "it's $(touch PWNED) a `touch PWNED` folder"
        project.mkdir()
        planned = job(
            recipe=Path(recipe), folder=project, out=Path(out), overrides=(override,), stage=folder / stage,
            env_file=Path(env_file), name=recipe,
        )  # fmt: skip
        text = render("slurm", planned)
        # options of sbatch, which would read them from a line of a user's too
        lines = text.split("\n")
        options = [line for line in lines if line.startswith("#SBATCH")]
        assert lines[1:11] == options
        # behind the first command sbatch reads none
        assert all(line.startswith("# ") for line in lines[11 : lines.index("set -euo pipefail")])
        assert all(re.fullmatch(r"#SBATCH --[\w=,@%.-]+", option) for option in options)
        code, calls = run(text, folder, STUBS, **ENVIRONMENT)
        assert code == 0
        assert not list(folder.rglob("PWNED"))
        staging, ranks = calls
        assert staging[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
        assert str(folder / stage) in staging
        safe = [f"./{path}" if path.startswith("-") else path for path in (recipe, out)]
        at = ranks.index("--config")
        assert ranks[at - 4 : at + 4] == [
            "python3",
            "-u",
            "-m",
            "launch.pretrain",
            "--config",
            safe[0],
            "--set",
            override,
        ]
        # SLURM would put numbers in place of %t
        assert f"--output={safe[1].replace('%', '%%')}/logs/slurm-12-0/rank-%5t.log" in ranks


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6])
def test_what_another_attempt_does_not_mend_ends_the_job(tmp_path: Path, code: int) -> None:
    assert Queue(tmp_path).attempt(code) == (code, False)


def test_the_ranks_own_error_counts_not_what_it_did_to_the_others(tmp_path: Path) -> None:
    """As srun has told it of a data set that one of two ranks found missing."""
    told = "srun: error: node2: task 1: Exited with exit code 70\nsrun: error: node1: task 0: Exited with exit code 3"
    assert Queue(tmp_path).attempt(70, told=told) == (3, False)
    told = "srun: error: node2: task 1: Exited with exit code 70\nsrun: error: node1: task 0: Killed"
    assert Queue(tmp_path).attempt(137, told=told) == (137, True)


@pytest.mark.parametrize("code", [7, 8, 70, 134, 137, 138, 143])
def test_failures_that_may_pass_are_tried_again_so_often(tmp_path: Path, code: int) -> None:
    queue = Queue(tmp_path, restarts=2)
    assert [queue.attempt(code) for _ in range(3)] == [(code, True), (code, True), (code, False)]


def test_a_run_that_saves_goes_on_for_ever_as_long_as_it_learns(tmp_path: Path) -> None:
    queue = Queue(tmp_path, restarts=2)
    assert [queue.attempt(75, str(step)) for step in range(5)] == [(75, True)] * 5
    # a rank that was killed after the others had saved
    assert queue.attempt(137, "5") == (75, True)
    # the time is too short for a step
    assert [queue.attempt(75, "5") for _ in range(3)] == [(75, True), (75, True), (75, False)]
    # without the file nothing was saved
    assert Queue(tmp_path, restarts=0).attempt(75) == (75, False)


def test_staging_that_fails_starts_no_ranks(tmp_path: Path) -> None:
    queue = Queue(tmp_path, stage=tmp_path / "disk")
    assert queue.attempt(3) == (3, False)
    assert len(list((tmp_path / "record").iterdir())) == 1
    # killed by the signal that warns of the time limit
    assert queue.attempt(138) == (138, True)


def test_a_script_that_requeued_after_term_would_be_noticed(tmp_path: Path) -> None:
    """SLURM sends TERM to end a job for good: the script must not catch it, as one with an EXIT trap would."""
    text = render("slurm", job(folder=tmp_path))
    assert not re.search(r"^\s*trap ", text, re.MULTILINE)


def test_what_is_asked_of_the_scheduler(tmp_path: Path) -> None:
    text = render(
        "slurm",
        job(gpus_per_node=2, cpus=6, time="1-00:00:00", partition="gpu", account="ab12", grace_s=300, hosts=()),
    )
    for option in (
        "nodes=2", "ntasks-per-node=2", "gpus-per-node=2", "cpus-per-task=6", "time=1-00:00:00", "partition=gpu",
        "account=ab12", "signal=USR1@300", "open-mode=append", "mem=0", "exclusive", "requeue", "job-name=demo",
    ):  # fmt: skip
        assert f"#SBATCH --{option}\n" in text
    assert "--wait=300" in text and "--cpus-per-task=6 \\" in text
    assert "nodelist" not in text and "gpus" not in render("slurm", job())
    (tmp_path / "job").write_text(text)
    assert subprocess.run(["bash", "-n", tmp_path / "job"], check=False).returncode == 0


def test_the_file_of_the_docs_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from launch.launch_cli import launch_app

    words = (
        "plan recipes/demo.toml --slurm --nodes 2 --gpus-per-node 4 --cpus 8 --time 1-00:00:00 --partition gpu"
        " --grace 300 --env-file run.env --stage /scratch/matloom --folder /shared/matloom --python python3"
    )
    done = CliRunner().invoke(launch_app, words.split())
    assert done.exit_code == 0, done.output
    assert done.stdout == (EXAMPLES / "plan_slurm.sbatch").read_text(), "write it anew"
    assert json.dumps(str(ROOT)) not in done.stdout
