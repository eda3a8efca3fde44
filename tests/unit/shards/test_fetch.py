"""A local copy: the same bytes as the original, or nothing under its name; what is here is not fetched again."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from shards.errors import DataError, MatloomError
from shards.fetch import fetch_dataset
from shards.fetching import Patience
from shards.sealed import SEAL, staging
from shards.verify import verify_dataset
from tests.servers import Faults, http_server, s3_server

QUICK = Patience(attempts=20, copies=8, stall_s=1.0, backoff_s=0.01, longest_s=0.02)
GIVES_UP = Patience(attempts=2, copies=2, stall_s=1.0, backoff_s=0.01, longest_s=0.02)


def equal(a: Path, b: Path) -> bool:
    names = sorted(path.name for path in a.iterdir())
    return names == sorted(path.name for path in b.iterdir()) and not filecmp.cmpfiles(a, b, names, shallow=False)[1]


def test_a_folder_is_copied_and_sealed_as_it_is(toy_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = fetch_dataset(toy_folder, tmp_path / "copy", progress=lambda *state: seen.append(state))
    assert manifest.samples == 60 and equal(toy_folder, tmp_path / "copy")
    assert verify_dataset(tmp_path / "copy") == 60
    total = sum(path.stat().st_size for path in toy_folder.iterdir() if path.name != SEAL)
    assert seen[-1] == (total, total) and len(seen) == 9
    assert fetch_dataset(toy_folder.resolve().as_uri(), tmp_path / "copy") == manifest


def test_folders_may_have_any_name(toy_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(toy_folder, tmp_path / "a#b %20" / "däta")
    fetch_dataset(source, tmp_path / "c #?%41")
    assert equal(source, tmp_path / "c #?%41")


def test_a_server_that_fails_in_every_way_is_copied_from(toy_folder: Path, tmp_path: Path) -> None:
    counts: dict[str, int] = {}
    for seed in range(3):
        with http_server(toy_folder, Faults(seed=seed, rate=0.4), stall_s=5.0) as server:
            fetch_dataset(server.url, tmp_path / f"copy{seed}", patience=QUICK)
        assert equal(toy_folder, tmp_path / f"copy{seed}")
        counts = {kind: counts.get(kind, 0) + n for kind, n in server.faults.counts.items()}
    assert len(counts) >= 3


def test_an_s3_bucket_is_copied(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server("shelf", toy_folder) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fetch_dataset("s3://shelf/set", tmp_path / "copy", patience=QUICK)
    assert equal(toy_folder, tmp_path / "copy")


def test_a_fetch_that_was_cut_off_goes_on_where_it_was(toy_folder: Path, tmp_path: Path) -> None:
    out, damaged, shard = tmp_path / "copy", "shard-000000.tar", "shard-000002.tar"
    with http_server(toy_folder, Faults(rate=1.0, kinds=["503"], only=shard)) as server, pytest.raises(DataError):
        fetch_dataset(server.url, out, patience=GIVES_UP)
    assert not out.exists()
    # it broke off in the middle of one file; another one that is here has been damaged since
    stage, size = staging(out), (toy_folder / shard).stat().st_size
    (stage / shard).write_bytes((toy_folder / shard).read_bytes()[: size // 2])
    shutil.copy(toy_folder / damaged, stage / damaged)
    with (stage / damaged).open("r+b") as file:
        file.seek(700)
        file.write(b"\xff\x00\xff")
    (stage / "chunk-000000.json").write_text("left by a build")
    before = {path.name for path in stage.iterdir()}
    with http_server(toy_folder) as server:
        fetch_dataset(server.url, out, patience=GIVES_UP)
    assert equal(toy_folder, out)
    fetched = {name: first for name, first, _ in server.requests if name != SEAL}
    assert fetched[shard] == size // 2 and fetched[damaged] == 0
    assert set(fetched) == {path.name for path in toy_folder.iterdir()} - {SEAL} - (before - {shard, damaged})


def test_files_of_an_earlier_copy_are_not_fetched_again(toy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    fetch_dataset(toy_folder, out)
    victim = next(iter(sorted(out.glob("*.tar"))))
    damaged = b"x" + victim.read_bytes()[1:]
    victim.write_bytes(damaged)
    with http_server(toy_folder, Faults(rate=1.0, kinds=["503"], only="tar")) as server, pytest.raises(DataError):
        fetch_dataset(server.url, out, patience=GIVES_UP)
    assert victim.read_bytes() == damaged, "a published file was written to"
    with http_server(toy_folder) as server:
        fetch_dataset(server.url, out, patience=GIVES_UP)
    assert {name for name, _, _ in server.requests} == {SEAL, victim.name}
    assert equal(toy_folder, out)


@pytest.mark.parametrize("missing", [SEAL, "manifest.json", "shard-000001.tar"])
def test_what_cannot_be_had_is_named_and_nothing_is_published(toy_folder: Path, tmp_path: Path, missing: str) -> None:
    broken = shutil.copytree(toy_folder, tmp_path / "broken")
    (broken / missing).unlink()
    with http_server(broken) as server:
        for place in (server.url, broken):
            with pytest.raises(DataError, match=missing):
                fetch_dataset(place, tmp_path / "copy", patience=GIVES_UP)
    assert not (tmp_path / "copy").exists()


def test_wrong_bytes_are_never_published(toy_folder: Path, tmp_path: Path) -> None:
    faults = Faults(rate=1.0, kinds=["wrong"], only="tar")
    with http_server(toy_folder, faults) as server, pytest.raises(DataError, match="wrong bytes"):
        fetch_dataset(server.url, tmp_path / "copy", patience=GIVES_UP)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "name", ["../evil.tar", "/tmp/evil.tar", "a/b.tar", "..", "", ".hidden", "a\0b", "seal.json\n", "C:\\x"]
)
def test_a_seal_that_names_foreign_places_is_refused(toy_folder: Path, tmp_path: Path, name: str) -> None:
    forged = shutil.copytree(toy_folder, tmp_path / "deep" / "forged")
    seal = json.loads((forged / SEAL).read_text())
    seal["files"][name] = {"bytes": 4, "sha256": "0" * 64}
    (forged / SEAL).write_text(json.dumps(seal))
    with pytest.raises(DataError, match="no data set has"):
        fetch_dataset(forged, tmp_path / "deep" / "copy")
    assert sorted(os.listdir(tmp_path)) == ["deep"] and sorted(os.listdir(tmp_path / "deep")) == ["forged"]


BAD_SIZE = '{"format": "matloom-seal-1", "files": {"a.tar": {"bytes": 1e999, "sha256": ""}}}'


@pytest.mark.parametrize("text", ["[]", "{}", "\xff", '{"format": "x", "files": {}}', "[" * 100_000, BAD_SIZE])
def test_a_seal_of_another_form_is_refused(toy_folder: Path, tmp_path: Path, text: str) -> None:
    forged = shutil.copytree(toy_folder, tmp_path / "forged")
    (forged / SEAL).write_text(text)
    with pytest.raises(DataError, match="seal"):
        fetch_dataset(forged, tmp_path / "copy")


def test_a_seal_without_room_on_the_disk_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    forged = shutil.copytree(toy_folder, tmp_path / "forged")
    seal = json.loads((forged / SEAL).read_text())
    seal["files"]["shard-000000.tar"]["bytes"] = 10**18
    (forged / SEAL).write_text(json.dumps(seal))
    with pytest.raises(DataError, match="no room"):
        fetch_dataset(forged, tmp_path / "copy")


def test_a_seal_and_a_manifest_of_different_sets_are_refused(toy_folder: Path, tmp_path: Path) -> None:
    from tests.unit.shards.test_verify import altered

    forged = altered(toy_folder, tmp_path / "forged", lambda manifest: manifest["shards"].pop())
    with pytest.raises(DataError, match="contradict each other"):
        fetch_dataset(forged, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_two_fetches_do_not_share_a_target(toy_folder: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".copy.lock"), pytest.raises(DataError, match="another process"):
        fetch_dataset(toy_folder, tmp_path / "copy")


def test_a_folder_that_is_no_data_set_is_never_replaced(toy_folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(MatloomError, match="home"):
        fetch_dataset(toy_folder, home)
    assert (home / "thesis.tex").read_text() == "years of work"
