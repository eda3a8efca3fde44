from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from shards import sealed
from shards.errors import CheckpointError, MatloomError
from shards.sealed import SEAL, publish, sealing, staging, verify

CONTENT = {"a.bin": bytes(range(200)), "deep/er/b.json": b"{}", "empty": b""}


def fill(folder: Path, content: dict[str, bytes] = CONTENT) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "sealed"
    with sealing(target) as stage:
        fill(stage)
    return target


def test_a_good_folder_verifies_and_its_hashes_are_returned(folder: Path) -> None:
    assert set(verify(folder)) == set(CONTENT)
    assert not staging(folder).exists()


@pytest.mark.parametrize("name", ["a.bin", "deep/er/b.json"])
def test_every_flipped_bit_is_named(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    for bit in range(0, 8 * len(good), 7):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(bad)
        with pytest.raises(CheckpointError, match=name):
            verify(folder, error=CheckpointError)


def test_every_flipped_bit_of_the_seal_is_an_error(folder: Path) -> None:
    good = (folder / SEAL).read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        # a new file: ext4 flushes one that is truncated and written anew
        (folder / SEAL).unlink()
        (folder / SEAL).write_bytes(bad)
        with pytest.raises(MatloomError):
            verify(folder)


@pytest.mark.parametrize("name", [*CONTENT, SEAL])
def test_a_deleted_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MatloomError, match=name):
        verify(folder)


@pytest.mark.parametrize("name", ["a.bin", "deep/er/b.json", SEAL])
def test_a_truncated_or_grown_file_is_named(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    for bad in (good[:-1], b"", good + b"x"):
        (folder / name).write_bytes(bad)
        with pytest.raises(MatloomError, match=name):
            verify(folder)


@pytest.mark.parametrize("name", ["new", "deep/new", "deep/seal.json", ".hidden"])
def test_an_added_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(MatloomError, match=name):
        verify(folder)


def test_checking_one_file_leaves_the_others_alone(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"damaged")
    verify(folder, only=("deep/er/b.json",))
    with pytest.raises(MatloomError, match=r"a\.bin"):
        verify(folder, only=("a.bin",))
    with pytest.raises(MatloomError, match="other"):
        verify(folder, only=("other",))


def test_nothing_appears_where_the_writer_fails(tmp_path: Path) -> None:
    target = tmp_path / "sealed"
    with pytest.raises(OSError, match="disk full"), sealing(target) as stage:  # noqa: PT012
        fill(stage)
        raise OSError("disk full")
    assert not target.exists()
    with sealing(target) as stage:
        assert not any(stage.iterdir()), "rests of the failed attempt"
        fill(stage, {"x": b"1"})
    assert set(verify(target)) == {"x"}


def test_the_old_folder_stays_until_the_new_one_is_complete(folder: Path) -> None:
    with pytest.raises(OSError, match="disk full"), sealing(folder) as stage:  # noqa: PT012
        fill(stage, {"x": b"1"})
        assert set(verify(folder)) == set(CONTENT)
        raise OSError("disk full")
    assert set(verify(folder)) == set(CONTENT)
    with sealing(folder) as stage:
        fill(stage, {"x": b"1"})
    assert set(verify(folder)) == {"x"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


class Crash(BaseException):
    """The process dies here: nothing after it runs."""


def crash_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[str]:
    """Let the ``call``-th file operation of the module (and all after it) die; return the names of those done."""
    done: list[str] = []

    def dying(name: str, real: object) -> object:
        def operation(*args: object, **kwargs: object) -> object:
            if len(done) >= call:
                raise Crash
            done.append(name)
            return real(*args, **kwargs)  # type: ignore[operator]

        return operation

    monkeypatch.setattr(os, "rename", dying("rename", os.rename))
    monkeypatch.setattr(os, "fsync", dying("fsync", os.fsync))
    monkeypatch.setattr(os, "replace", dying("replace", os.replace))
    monkeypatch.setattr(shutil, "rmtree", dying("rmtree", shutil.rmtree))
    monkeypatch.setattr(sealed, "sha256", dying("sha256", sealed.sha256))
    monkeypatch.setattr(Path, "write_text", dying("write_text", Path.write_text))
    monkeypatch.setattr(Path, "mkdir", dying("mkdir", Path.mkdir))
    return done


def test_a_crash_at_any_operation_leaves_the_old_or_the_new_folder(tmp_path: Path) -> None:
    new = {"x": b"1", "y": b"2"}
    for call in range(100):
        target = tmp_path / str(call) / "sealed"
        with sealing(target) as stage:
            fill(stage)
        with pytest.MonkeyPatch.context() as monkeypatch:
            fill(tmp_path / "spare", new)
            done = crash_at(monkeypatch, call)
            try:
                with sealing(target) as stage:
                    for name, data in new.items():
                        (stage / name).write_bytes(data)
                finished = True
            except Crash:
                finished = False
        # the next writer or reader finds one or the other, complete
        sealed.recover(target)
        assert set(verify(target)) in ({*CONTENT}, {*new}), done
        if finished:
            assert set(verify(target)) == {*new}
            assert call > 8
            return
        with sealing(target) as stage:
            fill(stage, new)
        assert set(verify(target)) == {*new}
    pytest.fail("it never finished")


def test_a_reader_between_the_renames_does_not_disturb_the_writer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, seen = os.rename, []

    def read_after(source: Path, target: Path) -> None:
        rename(source, target)
        if source == folder and len(seen) < 2:
            seen.append(set(verify(folder)))

    with sealing(folder) as stage:
        fill(stage, {"x": b"1"})
        monkeypatch.setattr(os, "rename", read_after)
    assert seen == [set(CONTENT)] * 2
    assert set(verify(folder)) == {"x"} and [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_writer_that_is_faster_than_a_reader_does_not_disturb_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, old = os.rename, folder.with_name(f".{folder.name}.old")
    rename(folder, old)
    shutil.copytree(old, staging(folder))

    def publish_before(source: Path, target: Path) -> None:
        if source == old:
            rename(staging(folder), folder)
        rename(source, target)

    monkeypatch.setattr(os, "rename", publish_before)
    assert set(verify(folder)) == set(CONTENT)


def test_a_folder_that_cannot_be_put_back_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name(f".{folder.name}.old"))

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(MatloomError, match=r"(?s)\.sealed\.old.*Read-only.*mv "):
        verify(folder)


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def files_alone(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_alone)
    with sealing(tmp_path / "set") as stage:
        fill(stage)
    assert set(verify(tmp_path / "set")) == set(CONTENT)


def test_every_folder_is_flushed_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, flushed = os.fsync, set()

    def note(handle: int) -> None:
        fsync(handle)
        flushed.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    with sealing(tmp_path / "set") as stage:
        fill(stage)
    assert {path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))} == flushed


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    disk, link = tmp_path / "disk", tmp_path / "home" / "set"
    disk.mkdir()
    link.parent.mkdir()
    link.symlink_to(disk / "real")
    for content in (CONTENT, {"x": b"1"}, {"y": b"2"}):
        with sealing(link) as stage:
            fill(stage, content)
        assert set(verify(link)) == set(verify(disk / "real")) == set(content)
    assert [path.name for path in link.parent.iterdir()] == ["set"] and link.is_symlink()
    assert [path.name for path in disk.iterdir()] == ["real"]


@pytest.mark.parametrize("name", ["/dev/null", "../other", "deep/../../other"])
def test_a_seal_that_names_files_elsewhere_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "other").write_bytes(b"")
    seal = json.loads((folder / SEAL).read_text())
    seal["files"][name] = seal["files"]["empty"]
    (folder / SEAL).write_text(json.dumps(seal))
    with pytest.raises(MatloomError, match="no file of the folder"):
        verify(folder)


def test_publish_of_a_stage_that_others_filled(tmp_path: Path) -> None:
    target = tmp_path / "step-1"
    staging(target).mkdir()
    fill(staging(target))
    publish(target)
    assert set(verify(target)) == set(CONTENT)


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    fill(home, {"thesis.tex": b"years of work"})
    with pytest.raises(MatloomError, match="home"), sealing(home):
        pytest.fail("it should be refused before any work")
    assert (home / "thesis.tex").read_bytes() == b"years of work"
    (tmp_path / "empty").mkdir()
    with sealing(tmp_path / "empty") as stage:
        fill(stage)
    verify(tmp_path / "empty")


@pytest.mark.parametrize(
    "seal", ["[]", "null", "{}", '{"files": []}', '{"files": {"a": 3}}', "\xff", '{"format": "x"}']
)
def test_a_seal_of_another_form_is_refused(folder: Path, seal: str) -> None:
    (folder / SEAL).write_text(seal)
    with pytest.raises(MatloomError):
        verify(folder)


def test_the_seal_is_plain_json(folder: Path) -> None:
    assert json.loads((folder / SEAL).read_text())["files"]["empty"]["bytes"] == 0
