from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.hosts.environment import adopt_env_file, for_ranks, read_env_file
from shards.errors import ConfigError
from tests.canaries import CANARIES, found_in

HERE = {
    "MLFLOW_TRACKING_URI": "http://mlflow.local", "MLFLOW_TRACKING_TOKEN": "abcdefgh1234", "NCCL_DEBUG": "INFO",
    "HF_TOKEN": "hf_123456789", "PYTHONPATH": "/x", "PATH": "/bin", "GITHUB_TOKEN": "ghp_12345678", "HOME": "/root",
    "RANK": "3", "MASTER_ADDR": "other", "CUDA_VISIBLE_DEVICES": "1", "CUDA_HOME": "/cuda", "DISPLAY": ":0",
    "SLURM_JOB_ID": "7",
}  # fmt: skip


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "run.env"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_what_runs_are_set_by_goes_to_all_hosts_and_nothing_else() -> None:
    assert sorted(for_ranks(here=HERE)) == [
        "CUDA_HOME", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI", "NCCL_DEBUG", "PATH", "PYTHONPATH",
    ]  # fmt: skip


def test_what_is_asked_for_goes_too_and_the_most_explicit_wins(tmp_path: Path) -> None:
    file = written(tmp_path, "NCCL_DEBUG=WARN\nOMP_NUM_THREADS=4\nMLFLOW_TRACKING_PASSWORD='p w'\n")
    found = for_ranks(["DISPLAY", "GITHUB_TOKEN", "OMP_NUM_THREADS=2"], file, here=HERE)
    assert found["DISPLAY"] == ":0"
    assert found["GITHUB_TOKEN"] == "ghp_12345678"
    assert (found["NCCL_DEBUG"], found["OMP_NUM_THREADS"], found["MLFLOW_TRACKING_PASSWORD"]) == ("WARN", "2", "p w")


def test_the_file_may_be_named_by_the_environment_and_its_name_stays_here(tmp_path: Path) -> None:
    file = written(tmp_path, "A_B=1\n")
    found = for_ranks(here={"MATLOOM_ENV_FILE": str(file), "MATLOOM_CACHE": "/c"})
    assert found == {"A_B": "1", "MATLOOM_CACHE": "/c"}


@pytest.mark.parametrize(
    ("item", "match"),
    [
        ("HF_TOKEN=abc", "a secret must not stand on a command line"),
        ("MLFLOW_TRACKING_URI=http://me:hunter2@h", "a secret must not stand on a command line"),
        ("NOT_HERE", "there is no such variable"),
        ("RANK", "for the launcher to set"),
        ("MASTER_PORT=1", "for the launcher to set"),
        ("1A=2", "no name of a variable"),
        ("A B", "no name of a variable"),
        ("=x", "no name of a variable"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(item: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        for_ranks([item], here=HERE)
    assert "hunter2" not in str(caught.value)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=b", "b"),
        ("export A=b", "b"),
        ("A='b $HOME ${X} # \"c\"'", 'b $HOME ${X} # "c"'),
        ('A="b\\nc"', "b\nc"),
        ('A="b\nc"', "b\nc"),
        ("A=b # said", "b"),
        ("A=b#c", "b#c"),
        ("A=b=c&d", "b=c&d"),
        ("A=", ""),
        ("# A=1\n\nA='\\'x'", "'x"),
        ("A=1\nA=2", "2"),
        ("A=$HOME", "$HOME"),
    ],
)
def test_values_are_read_as_dotenv_has_them(tmp_path: Path, text: str, value: str) -> None:
    assert read_env_file(written(tmp_path, text)) == {"A": value}


@given(value=st.text(alphabet=st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])))
@settings(max_examples=100, deadline=None)
def test_a_value_in_single_quotes_comes_back_whatever_it_is(
    tmp_path_factory: pytest.TempPathFactory, value: str
) -> None:
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    file = written(tmp_path_factory.getbasetemp(), f"A='{quoted}'\n")
    assert read_env_file(file) == {"A": value}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o660])
def test_a_file_with_secrets_is_for_its_owner_alone(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="others may read the environment file") as caught:
        read_env_file(written(tmp_path, "X=1\nMLFLOW_TRACKING_PASSWORD=hunter22\nURI=http://a:b1234@c\n", mode))
    assert "MLFLOW_TRACKING_PASSWORD, URI" in str(caught.value)
    assert f"chmod 600 {tmp_path}/run.env" in str(caught.value)
    assert "hunter22" not in str(caught.value)
    assert read_env_file(written(tmp_path, "OMP_NUM_THREADS=1\nKEYBOARD=us\n", mode)) == {
        "OMP_NUM_THREADS": "1",
        "KEYBOARD": "us",
    }


def test_a_file_that_somebody_else_has_made_for_our_group_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a secret that Kubernetes mounts is root's, and its group that of the pod
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert read_env_file(written(tmp_path, "MLFLOW_TRACKING_PASSWORD=hunter22\n", 0o440)) == {
        "MLFLOW_TRACKING_PASSWORD": "hunter22"
    }
    with pytest.raises(ConfigError, match="others may read"):
        read_env_file(written(tmp_path, "MLFLOW_TRACKING_PASSWORD=hunter22\n", 0o444))


def test_a_broken_line_is_named_by_its_number_and_not_shown(tmp_path: Path) -> None:
    for text in ("A=1\nhunter2secret\n", "A=1\nB='hunter2\n", "A=1\n=hunter2\n"):
        with pytest.raises(ConfigError, match=r"run\.env:2") as caught:
            read_env_file(written(tmp_path, text))
        assert "hunter2" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"A=\xff\xfe\n")
    for path in (tmp_path / "none", tmp_path, tmp_path / "binary"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_env_file(path)
    with pytest.raises(ConfigError, match="for the launcher to set"):
        read_env_file(written(tmp_path, "RANK=1\n"))


def test_a_rank_takes_the_file_itself(tmp_path: Path) -> None:
    environment = {"A_B": "old", "MATLOOM_ENV_FILE": str(written(tmp_path, "A_B=new\n"))}
    adopt_env_file(environment=environment)
    assert environment["A_B"] == "new"
    bare = {"A_B": "old"}
    adopt_env_file(environment=bare)
    assert bare == {"A_B": "old"}


@pytest.mark.parametrize("script", ["pretrain.py", "finetune.py"])
def test_the_scripts_of_native_launches_read_the_file(tmp_path: Path, script: str) -> None:
    lines = [f"{name}='{value}'" for name, value in CANARIES.items() if "'" not in value and "\\" not in value]
    file = written(tmp_path, "\n".join(lines), 0o644)
    command = [sys.executable, f"launch/{script}", "--config", "recipes/demo.toml"]
    clean = {name: value for name, value in os.environ.items() if name != "RANK"}
    for words, variables in (([*command, "--env_file", str(file)], {}), (command, {"MATLOOM_ENV_FILE": str(file)})):
        done = subprocess.run(words, env=clean | variables, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "others may read the environment file" in done.stderr
        assert not found_in(done.stdout + done.stderr)
