from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from launch.guard import guarded
from launch.jobs.base import KINDS, OBEYED, Job, remark, render, seconds, shell
from launch.launch_cli import launch_app
from shards.errors import ConfigError
from tests.canaries import CANARIES, found_in

ROOT = Path(__file__).resolve().parents[4]
EXAMPLES = ROOT / "docs" / "examples" / "launch"
SCRIPTS = ["mpi", "torchrun", "ssh", "kubernetes"]
# what a command was called with, a file a call
RECORD = """#!/bin/sh
mkdir -p "$RECORD"
printf '%s\\0' "$(basename "$0")" "$@" > "$RECORD/$(ls "$RECORD" | wc -l)"
"""
PAYLOADS = ["$(touch PWNED)", "`touch PWNED`", "'; touch PWNED; '", '"; touch PWNED; "', "\ntouch PWNED\n", "${IFS}",
            "a b", "-x", "--set", "*", "~", "$HOME", "\\", "'\\''", "#", "&", "é ", "|touch PWNED",
            "HOSTS\ntouch PWNED", "%n"]  # fmt: skip
pieces = st.one_of(st.sampled_from(PAYLOADS), st.text(max_size=6))
words = (
    st.lists(pieces, min_size=1, max_size=4)
    .map("".join)
    .map(lambda text: re.sub(r"[\0/\ud800-\udfff]", "", text)[:40])
    .filter(lambda text: text not in ("", ".", ".."))
)
# what `matloom launch plan` is told for each file of the docs
PLANS = {
    "plan_kubernetes.yaml": "--kubernetes --image registry.example.org/matloom:1 --claim matloom --gpus-per-node 8"
    " --nodes 4 --time 1-00:00:00 --env-file run.env --stage /scratch/matloom",
    "plan_mpi.sh": "--mpi --nodes 2 --ranks-per-node 4 --env-file run.env",
    "plan_torchrun.sh": "--torchrun --hosts node1,node2 --ranks-per-node 4 --env-file run.env --stage /scratch/matloom",
    "plan_ssh.sh": "--ssh --hosts node1,node2 --ranks-per-node 4 --env-file run.env",
}


def job(**more: Any) -> Job:
    plain: dict[str, Any] = {
        "recipe": Path("recipes/demo.toml"), "name": "demo", "folder": Path("/tmp"), "python": "python3",
        "out": Path("runs/demo"), "nodes": 2, "ranks_per_node": 2, "hosts": ("node1", "node2"),
        "image": "registry/matloom:1",
    }  # fmt: skip
    return Job(**{**plain, **more})


def script(kind: str, planned: Job) -> str:
    """The shell script of a kind of job."""
    text = render(kind, planned)
    return str(next(yaml.safe_load_all(text))["data"]["run.sh"]) if kind == "kubernetes" else text


def run(text: str, folder: Path, stubs: dict[str, str], **env: str) -> tuple[int, list[list[str]]]:
    """Run a script in which these commands are others; its exit code, and what they were called with."""
    process, record = start(text, folder, stubs, **env)
    process.communicate(timeout=60)
    calls = sorted(record.iterdir()) if record.exists() else []
    return process.returncode, [call.read_bytes().decode().split("\0")[:-1] for call in calls]


def start(text: str, folder: Path, stubs: dict[str, str], **env: str) -> tuple[subprocess.Popen[bytes], Path]:
    bin_, record = folder / "bin", folder / "record"
    bin_.mkdir(exist_ok=True)
    for name, content in stubs.items():
        (bin_ / name).write_text(content)
        (bin_ / name).chmod(0o755)
    (folder / "job.sh").write_text(text)
    variables = {"PATH": f"{bin_}:{os.environ['PATH']}", "HOME": str(folder), "RECORD": str(record), **env}
    return subprocess.Popen(["bash", str(folder / "job.sh")], env=variables, cwd=folder, start_new_session=True), record


@pytest.mark.parametrize("kind", SCRIPTS)
@given(recipe=words, out=words, override=words, env_file=words, stage=words)
@settings(max_examples=20, deadline=None)
@example(
    recipe="$(touch PWNED).toml", out="\n'`touch PWNED`'\n", override="a=$(touch PWNED)", env_file="--", stage="-n x"
)
def test_nothing_that_a_user_writes_becomes_a_command(
    kind: str, recipe: str, out: str, override: str, env_file: str, stage: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = folder / "it's $(touch PWNED) a `touch PWNED` folder"
        project.mkdir()
        planned = job(
            recipe=Path(recipe), folder=project, out=Path(out), overrides=(override,), stage=folder / stage,
            env_file=Path(env_file), name=recipe,
        )  # fmt: skip
        code, calls = run(script(kind, planned), folder, {"python3": RECORD, "mpirun": RECORD})
        assert code == 0
        assert not list(folder.rglob("PWNED"))
        (rank,) = [call for call in calls if "launch.pretrain" in call or "run" in call]
        safe = [f"./{path}" if path.startswith("-") else path for path in (recipe, out)]
        expected = ["--set", override, "--out", safe[1], "--resume", "auto"]
        at = rank.index("--out") - 2
        assert rank[at : at + 6] == expected
        assert safe[0] in rank
        if kind != "ssh":
            assert any(call[-1] != "" and str(folder / stage) in call and "stage" in call for call in calls)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_what_a_wrong_quoting_would_do_is_noticed(kind: str, tmp_path: Path) -> None:
    text = script(kind, job(recipe=Path("x$(touch PWNED)y"), folder=tmp_path))
    assert "'x$(touch PWNED)y'" in text
    run(text.replace("'x$(touch PWNED)y'", "x$(touch PWNED)y"), tmp_path, {"python3": RECORD, "mpirun": RECORD})
    assert list(tmp_path.rglob("PWNED"))


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_a_comment_stays_a_comment(text: str) -> None:
    assert all(line.startswith("#") for line in remark(text, f"x{text}").splitlines())


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
@settings(max_examples=50, deadline=None)
def test_a_command_comes_out_of_the_shell_as_it_went_in(given_words: list[str]) -> None:
    command = ["printf", "%s\\0", *given_words]
    done = subprocess.run(["bash", "-c", shell(command)], capture_output=True, check=True)
    assert done.stdout.decode() == "".join(f"{word}\0" for word in given_words)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_scripts_are_good_shell(kind: str, tmp_path: Path) -> None:
    text = script(kind, job(env_file=Path("run.env"), stage=Path("/scratch/x y"), overrides=("optim.lr=1e-3",)))
    file = tmp_path / "job.sh"
    file.write_text(text)
    subprocess.run(["bash", "-n", str(file)], check=True)
    checker = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(ROOT / ".venv" / "bin"))
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install -e .[dev]")
    done = subprocess.run([checker, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", ["mpi", "torchrun", "kubernetes"])
@pytest.mark.parametrize("code", [0, 3, 70, 138])
def test_the_exit_code_is_that_of_the_ranks_and_an_old_one_is_forgotten(kind: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "preempted.json").touch()
    stub = f"#!/bin/sh\nexit {code}\n"
    found, _ = run(script(kind, job(folder=tmp_path, out=Path("run"))), tmp_path, {"mpirun": stub, "python3": stub})
    assert found == code


def test_mpirun_gets_names_and_never_a_value(tmp_path: Path) -> None:
    code, calls = run(
        script("mpi", job(folder=tmp_path, env=("MY_OWN",), stage=Path("/scratch"))), tmp_path, {"mpirun": RECORD},
        **CANARIES, NCCL_DEBUG="INFO", MY_OWN="1", CUDA_VISIBLE_DEVICES="0", SHELLY="1", MATLOOM_STAGE="old",
    )  # fmt: skip
    assert code == 0
    staging, ranks = calls
    names = [after for word, after in itertools.pairwise(ranks) if word == "-x"]
    assert {"MLFLOW_TRACKING_URI", "HF_TOKEN", "NCCL_DEBUG", "MY_OWN", "OMP_NUM_THREADS", "PATH"} <= set(names)
    assert not {"CUDA_VISIBLE_DEVICES", "SHELLY", "GITHUB_TOKEN", "HOME"} & set(names)
    assert len(set(names)) == len(names)
    assert names.count("MATLOOM_STAGE") == 1
    assert "MATLOOM_STAGE" not in staging
    assert not found_in(str(calls))


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_of_the_environment_stands_in_a_job_file(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    text = render(kind, job(env_file=Path("/home/me/run.env"), env=("HF_TOKEN",), stage=Path("/scratch")))
    assert not found_in(text)
    assert "run.env" in text
    assert "--resume" in text


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:05", 7205),
        ("1-0", 86400),
        ("1-2", 93600),
        ("1-00:30", 88200),
        ("0-00:00:09", 9),
        ("120:00", 7200),
        ("120:00:00", 432000),
        ("1:5", 65),
        ("0", 0),
    ],
)
def test_times_are_slurms(time: str, expected: int) -> None:
    assert seconds(str(job(time=time).time)) == expected


def test_several_partitions_are_slurms_too() -> None:
    assert "#SBATCH --partition=gpu,long\n" in render("slurm", job(partition="gpu,long"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"partition": "a b"}, {"partition": "-x"}, {"account": "x\n#SBATCH --uid=0"}, {"image": "a;b"},
        {"time": "soon"}, {"time": "1:2:3:4"}, {"time": "-1"}, {"time": "٣"}, {"partition": "a,"}, {"account": "a,b"},
        {"hosts": ("a", "$(x)")}, {"hosts": ("a",)}, {"env": ("A=B",)}, {"claim": "a'b"},
    ],
)  # fmt: skip
def test_what_no_scheduler_takes_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        job(**wrong)


@pytest.mark.parametrize("kind", ["ssh", "kubernetes"])
def test_what_a_kind_needs_is_asked_for(kind: str) -> None:
    with pytest.raises(ConfigError, match="needs"):
        render(kind, job(hosts=(), image=None))


def planned_by(*options: str) -> str:
    done = CliRunner().invoke(launch_app, ["plan", *options])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", PLANS)
def test_the_files_of_the_docs_are_what_plan_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    place = ["recipes/demo.toml", "--folder", "/shared/matloom", "--python", "python3"]
    assert (EXAMPLES / name).read_text() == planned_by(*place, *PLANS[name].split())


def test_plan_writes_a_file_that_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    file = tmp_path / "jobs" / "job.sh"
    assert planned_by("recipes/demo.toml", "--torchrun", "--write", str(file)) == ""
    assert os.access(file, os.X_OK)
    assert file.read_text() == planned_by("recipes/demo.toml", "--torchrun")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--mpi", "--ssh"], "name one kind of job"),
        ([], "name one kind of job"),
        (["--mpi", "--set", "data.path=https://me:hunter2@host/x"], "a secret must not stand in a job file"),
        (["--mpi", "--env", "HF_TOKEN=hunter2"], "names variables"),
        (["--ssh"], "needs the names of the hosts"),
        (["--mpi", "--set", "data.batch=1"], "batch"),
        (["--torchrun", "--env", "MY_OWN", "--grace", "120"], "--grace changes nothing in a file for --torchrun"),
        (["--kubernetes", "--image", "x", "--env", "MY_OWN"], "write the variable into --env-file FILE"),
        (["--ssh", "--hosts", "a", "--partition", "gpu"], "it is for --slurm"),
    ],
)
def test_wrong_plans_are_users_errors(
    options: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert guarded(lambda: launch_app(["plan", "recipes/demo.toml", *options], standalone_mode=False)) == 2
    told = capsys.readouterr()
    assert match in told.err
    assert "hunter2" not in told.err + told.out


# an option, its value, and what it makes of a file for each kind that obeys it
OBEYING: dict[tuple[str, str], dict[str, str]] = {
    ("hosts", "a,b"): {"slurm": "--nodelist=a,b", "mpi": "--host a:1,b:1", "torchrun": ":=a}", "ssh": "b slots=1"},
    ("cpus", "8"): {"slurm": "--cpus-per-task=8", "kubernetes": "cpu: '8'", "mpi": "OMP_NUM_THREADS:-8}"},
    ("time", "7:30"): {"slurm": "--time=7:30", "kubernetes": "activeDeadlineSeconds: 450"},
    ("partition", "gpu"): {"slurm": "--partition=gpu"},
    ("account", "ab12"): {"slurm": "--account=ab12"},
    ("image", "x:1"): {"kubernetes": "image: x:1"},
    ("claim", "mine"): {"kubernetes": "claimName: mine"},
    # the scripts of SLURM and torchrun hand on all that they have
    ("env", "MY_OWN"): {"slurm": "", "mpi": "MY_OWN", "torchrun": "", "ssh": "--env MY_OWN"},
    ("grace", "77"): {"slurm": "USR1@77", "kubernetes": "terminationGracePeriodSeconds: 77", "ssh": "--grace 77"},
    ("restarts", "9"): {"slurm": "-le 9", "kubernetes": "maxRestarts: 9", "ssh": "--restarts 9"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("option", "value"), OBEYING)
def test_an_option_is_obeyed_or_refused(kind: str, option: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    needed = {"ssh": {"hosts": "a,b"}, "kubernetes": {"image": "y:1"}}.get(kind, {})
    words = [word for name, given in {**needed, option: value}.items() for word in (f"--{name}", given)]
    command = ["plan", "recipes/demo.toml", f"--{kind}", *words]
    if expected := OBEYING[option, value].get(kind, ""):
        assert expected in planned_by(*command[1:])
    elif kind not in OBEYING[option, value]:
        with pytest.raises(ConfigError, match=f"--{option} changes nothing in a file for --{kind}"):
            launch_app(command, standalone_mode=False)


def test_the_docs_say_which_kind_obeys_which_option() -> None:
    assert {option: tuple(kinds) for (option, _), kinds in OBEYING.items()} == OBEYED
    text = (ROOT / "docs" / "launch.md").read_text()
    for option, kinds in OBEYED.items():
        assert re.search(rf"^\| .*`--{option}`.* \| {', '.join(kinds)} \|$", text, re.MULTILINE), option


def test_the_docs_name_the_options_of_each_file() -> None:
    text = (ROOT / "docs" / "launch.md").read_text()
    assert all(f"| `{options}` | [{name}](examples/launch/{name}) |" in text for name, options in PLANS.items())
