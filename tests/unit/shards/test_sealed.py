from __future__ import annotations

import json
import os
import shutil
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
