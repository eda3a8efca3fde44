"""What the commands that start and plan runs print and write, in an environment full of secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from launch import cli
from tests.canaries import CANARIES, S3_SESSION, S3_SIGNATURE, URI_PASSWORD
from tests.distributed.runs import Workshop
from tests.leaks import leaks, leaks_in

SIGNED = f"https://127.0.0.1:9/set?X-Amz-Security-Token={S3_SESSION}&X-Amz-Signature={S3_SIGNATURE}"
PASSWORD = f"http://matloom:{URI_PASSWORD}@127.0.0.1:9"
KINDS = ("slurm", "kubernetes", "mpi", "torchrun", "ssh")


@pytest.fixture
def shop(tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A toy recipe, and a shell with all canaries in its environment and in the file that MATLOOM_ENV_FILE names."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    file = tmp_path.with_name(f"{tmp_path.name}.env")
    file.write_text(f"IN_FILE_TOKEN='file-{CANARIES['HF_TOKEN']}'\n")
    file.chmod(0o600)
    monkeypatch.setenv("MATLOOM_ENV_FILE", str(file))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return Workshop.make(tmp_path, toy_folder, epochs=1, evaluate=1, save=5)


def told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str]:
    """Run ``matloom`` in this process; exit code and output."""
    monkeypatch.setattr("sys.argv", ["matloom", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out + err


def test_what_looks_for_leaks_finds_each_spelling(tmp_path: Path) -> None:
    for name, found in leaks_in(repr(os.urandom(64)).encode()).items():
        raise AssertionError((name, found))
    for name, secret in CANARIES.items():
        (tmp_path / "a.bin").write_bytes(b"\0\1" + secret.encode() + b"\0")
        assert leaks(tmp_path), name
    import base64
    import json
    from urllib.parse import quote

    (tmp_path / "a.bin").unlink()
    secret = CANARIES["MLFLOW_TRACKING_PASSWORD"]
    for written in (json.dumps(secret), quote(secret), base64.b64encode(f"user:{secret}".encode()).decode()):
        assert "MLFLOW_TRACKING_PASSWORD" in leaks_in(written.encode()), written


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize("command", [["pretrain"], ["launch", "run"], ["launch", "run", "--env", "oauthClientSecret"]])
def test_a_dry_run(
    shop: Workshop,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    as_json: list[str],
) -> None:
    code, text = told(capfd, monkeypatch, *command, shop.recipe, "--dry-run", "--calibrate", 0, *as_json)
    assert code == 0, text
    # the variables are named, so that one sees what the ranks get
    assert re.search(r"MLFLOW_TRACKING_PASSWORD.*\*\*\*", text) and "IN_FILE_TOKEN" in text
    assert not leaks_in(text.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan(shop: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    words = ["launch", "plan", f"--{kind}", shop.recipe, "--nodes", 2]
    if kind == "kubernetes":
        words += ["--image", "matloom:1"]
    else:
        words += ["--hosts", "a,b", "--env", "oauthClientSecret", "--env-file", os.environ["MATLOOM_ENV_FILE"]]
    code, text = told(capfd, monkeypatch, *words, "--write", shop.folder / "job")
    assert code == 0, text
    assert not leaks_in(text.encode()) and not leaks(shop.folder)
    code, text = told(capfd, monkeypatch, *words, "--set", f"data.path={SIGNED}")
    assert code == 2 and not leaks_in(text.encode()), text


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"]])
def test_the_doctor(
    shop: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    _, text = told(capfd, monkeypatch, *words)
    assert "python" in text.lower() and not leaks_in(text.encode())


def test_the_pre_flight(shop: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = told(capfd, monkeypatch, "launch", "check", shop.recipe, "--json")
    assert code in (0, 8), text
    assert not leaks_in(text.encode()) and not leaks(shop.folder)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize("words", [["launch", "run"], ["pretrain"], ["launch", "check"], ["config", "show"]])
def test_recipes_that_are_refused(
    shop: Workshop,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    debug: list[str],
) -> None:
    recipe = shop.recipe.read_text().replace("[tracking]", f'[tracking]\nuri = "{PASSWORD}"\ntoken = "{S3_SESSION}"')
    (shop.folder.parent / f"{shop.folder.name}.toml").write_text(recipe)
    code, text = told(capfd, monkeypatch, *words, shop.folder.parent / f"{shop.folder.name}.toml", *debug)
    assert code == 2 and "tracking.uri" in text
    assert ("Traceback" in text) == bool(debug)
    assert not leaks_in(text.encode()), text


@pytest.mark.parametrize("words", [["launch", "run"], ["pretrain"], ["launch", "check"]])
def test_a_signed_address_is_no_word_of_a_command(
    shop: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    code, text = told(capfd, monkeypatch, *words, shop.recipe, "--set", f"data.path={SIGNED}")
    assert code == 2 and "--set data.path" in text and "recipe" in text, text
    assert not leaks_in(text.encode())


@pytest.mark.parametrize("words", [["launch", "run"], ["launch", "run", "--dry-run"], ["launch", "check"]])
@pytest.mark.parametrize(
    "ssh",
    [
        "sshpass -p {} ssh",
        "/usr/bin/sshpass -p{} ssh -F config",
        "ssh -o SetEnv=HF_TOKEN={}",
        "ssh -o 'SetEnv HF_TOKEN={}'",
        "ssh -o 'ProxyCommand=proxy --password={} %h'",
        "ssh -o 'ProxyCommand=proxy http://me:{}@there %h'",
    ],
)
def test_a_password_is_no_word_of_ssh(
    shop: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], ssh: str
) -> None:
    code, text = told(capfd, monkeypatch, *words, shop.recipe, "--ssh", ssh.format("s3cretCanary99"))
    assert code == 2 and "--ssh" in text and "s3cretCanary99" not in text, text


@pytest.mark.parametrize(
    "ssh", ["ssh", "sshpass -e ssh -P 'x'", "ssh -F config -p 2222 -i ~/.ssh/id_rsa", "ssh -o ProxyJump=me@there"]
)
def test_words_of_ssh_without_a_password(ssh: str) -> None:
    from launch.hosts.remote import Remote

    Remote.by(ssh)
