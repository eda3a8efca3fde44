from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from launch.hosts.controller import Requests
from launch.hosts.hostfile import Host
from launch.hosts.remote import Remote
from launch.hosts.staging import bring, places, stage
from launch.launch_cli import launch_app
from pretrain.config import DataConfig, Recipe, load_recipe
from shards import fetch
from shards.errors import DataError, HostError
from shards.fetching import Patience
from shards.locate import existing, locate
from shards.reader import Dataset
from shards.staged import STAGE, copy_in, staged
from tests.distributed.runs import Workshop
from tests.servers import Faults, http_server
from tests.synthetic import build_toy

HERE = [Host("localhost", (0,))]


def ignored(answer: object) -> None:
    """Say nothing."""


def recipe_of(tmp_path: Path, place: str) -> Recipe:
    shop = Workshop.make(tmp_path, Path("/nowhere"), epochs=1, evaluate=1, save=1)
    return load_recipe(shop.recipe, [f"data.path={place}"])


def test_a_copy_has_a_name_that_no_user_password_or_signature_changes(tmp_path: Path) -> None:
    one = copy_in(tmp_path, "https://me:hunter2@host/sets/toy?X-Signature=1")
    assert one == copy_in(tmp_path, "https://host/sets/toy?X-Signature=2")
    assert one.name.startswith("toy-")
    others = [
        "https://host/sets/toy2",
        "https://other/sets/toy",
        "/sets/toy",
        "embedded:dft_crystals",
        "https://host/toy",
    ]
    assert len({one, *(copy_in(tmp_path, other) for other in others)}) == 6
    assert copy_in(tmp_path, "sets/toy") == copy_in(tmp_path, f"{os.getcwd()}/sets/toy")
    assert all(copy_in(tmp_path, odd).parent == tmp_path for odd in ("/", "..", "http://host/..", "/a/b c/$(x)"))


def test_all_data_sets_of_a_recipe_are_staged() -> None:
    mix = DataConfig.model_validate({"mix": [{"path": "a", "overlays": ["c"]}, {"path": "b"}, {"path": "a"}]})
    assert places(mix) == ["a", "c", "b"]
    assert places(DataConfig(path="s3://x/y", overlays=("/o",))) == ["s3://x/y", "/o"]


def test_staged_data_is_the_same_data_and_is_read_in_place_of_the_url(
    tmp_path: Path, toy: Dataset, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    with http_server(toy_folder) as server:
        url = server.url.replace("http://", "http://me:hunter2@")
        environment = stage(Remote(), HERE, recipe_of(tmp_path, f"{url}?sig=s3cr3t"), tmp_path / "disk", lines.append)
    assert environment == {STAGE: str(tmp_path / "disk")}
    assert "hunter2" not in str(lines)
    assert "s3cr3t" not in str(lines)
    assert any("verified" in line and line.startswith("localhost: ") for line in lines)
    # before: the URL; with the variable: the copy, whose identity is that of the data set
    assert locate(url) == existing(url) == url
    monkeypatch.setenv(STAGE, str(tmp_path / "disk"))
    copy = locate(url)
    assert isinstance(copy, Path)
    assert copy == existing(url)
    read = Dataset(copy)
    assert (read.sha256, read.name, read.contents) == (toy.sha256, toy.name, toy.contents)
    assert locate("https://somewhere/else") == "https://somewhere/else"


def test_staging_again_fetches_nothing_but_what_has_changed(tmp_path: Path, toy_folder: Path) -> None:
    source, disk = tmp_path / "source", tmp_path / "disk"
    shutil.copytree(toy_folder, source)
    said: list[dict[str, str]] = []
    with http_server(source) as server:
        bring([server.url], disk, said.append)
        first, inode = len(server.requests), (copy_in(disk, server.url) / "manifest.json").stat().st_ino
        bring([server.url], disk, said.append)
        again = {name for name, _, _ in server.requests[first:]}
        assert (copy_in(disk, server.url) / "manifest.json").stat().st_ino == inode
        # a damaged copy is mended
        (victim,) = sorted(copy_in(disk, server.url).glob("*.tar"))[:1]
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.chmod(0o644)
        victim.write_bytes(data)
        bring([server.url], disk, said.append)
        assert victim.read_bytes() != bytes(data)
        # and another data set at the same URL takes its place
        shutil.rmtree(source)
        build_toy(source, count=20)
        bring([server.url], disk, said.append)
        assert Dataset(copy_in(disk, server.url)).sha256 == Dataset(source).sha256 != Dataset(toy_folder).sha256
    assert again == {"seal.json"}
    assert "is there, verified" in str(said)


def test_a_shared_folder_and_an_embedded_set_are_staged_too(
    tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def build(name: str, out: Path, **options: object) -> None:
        built.append(out)
        shutil.copytree(toy_folder, out)

    monkeypatch.setattr("shards.locate.build_embedded", build)
    for _ in range(2):
        bring([str(toy_folder), "embedded:dft_crystals"], tmp_path, ignored)
    assert built == [copy_in(tmp_path, "embedded:dft_crystals")]
    monkeypatch.setenv(STAGE, str(tmp_path))
    assert locate("embedded:dft_crystals") == built[0]
    assert staged(str(toy_folder)) == copy_in(tmp_path, str(toy_folder))
    monkeypatch.setenv(STAGE, "")
    assert staged(str(toy_folder)) is None


def test_a_disk_without_room_is_found_before_a_byte_is_fetched(
    tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http_server(toy_folder) as server:
        needed = fetch.bytes_to_fetch(server.url, tmp_path / "copy")
        assert needed == sum(p.stat().st_size for p in toy_folder.iterdir() if p.name != "seal.json")
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
        with pytest.raises(DataError, match="no room for the data"):
            bring([server.url], tmp_path, ignored)
    assert {name for name, _, _ in server.requests} == {"seal.json"}


def test_a_fetch_that_broke_off_goes_on_where_it_was(
    tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the first one fails for good after some files
    monkeypatch.setattr(fetch, "Patience", lambda: Patience(attempts=1, backoff_s=0.001))
    with http_server(toy_folder, Faults(seed=1, rate=1.0, kinds=["short"], only=r"\.tar$", most=1)) as server:
        total = fetch.bytes_to_fetch(server.url, tmp_path / "x")
        with pytest.raises(DataError):
            bring([server.url], tmp_path, ignored)
        rest = fetch.bytes_to_fetch(server.url, copy_in(tmp_path, server.url))
        assert 0 < rest < total
        done = len(server.requests)
        bring([server.url], tmp_path, ignored)
        again = [(name, sent) for name, _, sent in server.requests[done:] if name != "seal.json"]
    assert sum(sent for _, sent in again) == rest


def test_two_runs_on_one_host_take_turns(tmp_path: Path, toy_folder: Path) -> None:
    said: list[str] = []
    waiting = threading.Event()

    def say(answer: dict[str, str]) -> None:
        said.append(answer["said"])
        waiting.set()

    with FileLock(tmp_path / ".lock"):
        thread = threading.Thread(target=bring, args=([str(toy_folder)], tmp_path, say))
        thread.start()
        assert waiting.wait(30)
        assert not copy_in(tmp_path, str(toy_folder)).exists()
    thread.join(60)
    assert "another run is staging" in said[0]
    assert copy_in(tmp_path, str(toy_folder)).is_dir()


@pytest.mark.parametrize(
    ("place", "folder", "kind", "match"),
    [
        ("/nowhere/at/all", "disk", DataError, "cannot be staged"),
        ("http://127.0.0.1:9/x", "file/disk", HostError, "cannot be staged: the folder cannot be written"),
    ],
)
def test_what_goes_wrong_names_the_host(
    tmp_path: Path, place: str, folder: str, kind: type[Exception], match: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=match) as caught:
        stage(Remote(), HERE, recipe_of(tmp_path, place), tmp_path / folder, ignored)
    assert "localhost" in str(caught.value)


def test_a_host_that_cannot_be_reached_is_named(tmp_path: Path, toy_folder: Path) -> None:
    hosts = [*HERE, Host("host-of-nobody.invalid", (0,))]
    with pytest.raises(HostError, match="cannot be staged") as caught:
        stage(Remote(["false"]), hosts, recipe_of(tmp_path, str(toy_folder)), tmp_path / "disk", ignored)
    assert "host-of-nobody.invalid" in str(caught.value)


def test_the_process_ends_with_whoever_asked(tmp_path: Path, hold_server: Callable[..., str]) -> None:
    url = hold_server()
    process = Remote().popen("localhost", "launch.hosts.staging")
    assert process.stdin and process.stderr and process.stdout
    process.stdin.write(json.dumps({"places": [url], "folder": str(tmp_path), "environment": {}}) + "\n")
    process.stdin.close()
    assert process.wait(60) == 1


@pytest.fixture
def hold_server(toy_folder: Path) -> object:
    """A server whose answers stall for longer than any test."""
    import contextlib

    with contextlib.ExitStack() as stack:
        yield (
            lambda: (
                stack.enter_context(
                    http_server(toy_folder, Faults(seed=1, rate=1.0, kinds=["stall"]), stall_s=600.0)
                ).url
            )
        )


def test_a_user_stages_by_hand(tmp_path: Path, toy_folder: Path) -> None:
    shop = Workshop.make(tmp_path, toy_folder, epochs=1, evaluate=1, save=1)
    done = CliRunner().invoke(launch_app, ["stage", str(shop.recipe), str(tmp_path / "disk")])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"export {STAGE}={tmp_path}/disk"
    assert copy_in(tmp_path / "disk", str(toy_folder)).is_dir()


def test_nobody_is_waited_for_once_somebody_asks_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def popen(self: Remote, host: str, module: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(["sleep", "1000"], stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return started[-1]

    monkeypatch.setattr(Remote, "popen", popen)
    with Requests() as requests:
        work = partial(stage, Remote(), HERE, recipe_of(tmp_path, "/data"), tmp_path / "copies", ignored)
        assert requests.break_off(work, {"broken": "off"}) == {"broken": "off"}
        assert requests.wanted == [signal.SIGTERM]
    assert started[0].wait(10) == -signal.SIGKILL
