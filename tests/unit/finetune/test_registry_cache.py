"""The cache of fetched models: where it lies, whose it is, how full it is, and who else is at it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.registry import cache
from finetune.registry.contents import check_contents
from shards.errors import CheckpointError, RegistryError
from shards.sealed import SEAL, publish, sha256

AS_ROOT = os.getuid() == 0
NOBODY = 65534


@pytest.fixture
def seal(export_folder: Path) -> str:
    return sha256(export_folder / SEAL)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return tmp_path / "cache" / "models"


def copied(export: Path) -> Callable[[Path], None]:
    def fetch(target: Path) -> None:
        for path in export.iterdir():
            shutil.copyfile(path, target / path.name)

    return fetch


def another(folder: Path, card: str = "another") -> None:
    """Make another model of it, properly sealed."""
    stage = folder.parent / f".{folder.name}.partial"
    shutil.copytree(folder, stage, ignore=shutil.ignore_patterns(SEAL))
    (stage / "MODEL_CARD.md").write_text(card)
    publish(folder)


def left(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir())


def test_what_is_kept_is_found_and_nothing_else_is_left(export_folder: Path, seal: str, models: Path) -> None:
    assert cache.cached(seal) is None
    assert cache.keep(copied(export_folder), seal=seal) == models / seal == cache.cached(seal)
    assert left(models) == sorted([seal, "lock"])


@pytest.mark.parametrize("part", ["cache", "models"])
def test_a_cache_that_is_a_link_is_used_where_it_leads(
    part: str, export_folder: Path, seal: str, models: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = models.parent if part == "cache" else models
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    assert cache.keep(copied(export_folder), seal=seal) == cache.cached(seal) == models / seal
    assert check_contents(elsewhere / "models" / seal if part == "cache" else elsewhere / seal) == seal


def test_a_link_that_leads_nowhere_is_said(export_folder: Path, seal: str, models: Path, tmp_path: Path) -> None:
    models.parent.symlink_to(tmp_path / "nowhere" / "at all")
    with pytest.raises(RegistryError, match="the cache cannot be written"):
        cache.keep(copied(export_folder), seal=seal)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("where", ["models", "cache"])
def test_a_file_in_the_place_of_the_cache_is_said(where: str, export_folder: Path, seal: str, models: Path) -> None:
    place = models if where == "models" else models.parent
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    assert cache.cached(seal) is None and cache.last_known("models:/x/1") is None
    with pytest.raises(RegistryError, match="the cache cannot be written"):
        cache.keep(copied(export_folder), seal=seal)
    cache.remember("models:/x/1", export_folder)
    assert place.read_text() == "mine"


def test_a_model_whose_place_is_a_link_is_fetched_and_the_end_of_the_link_left_alone(
    export_folder: Path, seal: str, models: Path, tmp_path: Path
) -> None:
    precious = shutil.copytree(export_folder, tmp_path / "precious")
    another(precious)
    models.mkdir(parents=True)
    (models / seal).symlink_to(precious)
    before = {path: path.read_bytes() for path in precious.iterdir()}
    assert cache.cached(seal) is None
    folder = cache.keep(copied(export_folder), seal=seal)
    assert check_contents(folder, seal=seal) == seal and not folder.is_symlink()
    assert {path: path.read_bytes() for path in precious.iterdir()} == before


def test_what_cannot_be_replaced_is_not_taken_for_the_model(
    export_folder: Path, seal: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's folder, with a seal of its own, under the name of the model."""
    cache.keep(copied(export_folder), seal=seal)
    another(models / seal)
    monkeypatch.setattr(shutil, "rmtree", refusing(shutil.rmtree, models / seal))
    assert cache.cached(seal) is None
    with pytest.raises(CheckpointError, match="something else in the place of this model"):
        cache.keep(copied(export_folder), seal=seal)
    assert left(models) == sorted([seal, "lock"])


def refusing(remove: Callable[..., None], folder: Path) -> Callable[..., None]:
    def refuse(path: Any, *arguments: Any, **options: Any) -> None:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        remove(path, *arguments, **options)

    return refuse


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_is_full_is_said_and_nothing_half_written_stays(
    code: int, export_folder: Path, seal: str, models: Path
) -> None:
    def fetch(target: Path) -> None:
        (target / "recipe.json").write_text("{")
        raise OSError(code, os.strerror(code))

    with pytest.raises(RegistryError, match="cannot be written") as error:
        cache.keep(fetch, seal=seal)
    assert os.strerror(code) in str(error.value) and "MATLOOM_CACHE" in str(error.value)
    assert left(models) == [] and cache.cached(seal) is None


PULL = """
import os, pathlib, sys
from finetune.registry import cache
from shards.errors import RegistryError
from tests.unit.finetune.test_registry_cache import copied
export, seal = sys.argv[1:]
try:
    cache.keep(copied(pathlib.Path(export)), seal=seal)
except RegistryError as error:
    print(error)
print(os.listdir(cache._models()), cache.cached(seal))
"""


def test_a_real_disk_that_is_full(export_folder: Path, seal: str, tmp_path: Path) -> None:
    """A file system of half the model's size, in a name space of its own."""
    (tmp_path / "small").mkdir()
    size = sum(path.stat().st_size for path in export_folder.iterdir()) // 2
    mount = f"mount -t tmpfs -o size={size} tmpfs {tmp_path}/small"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", PULL, export_folder, seal],
        env={**os.environ, "MATLOOM_CACHE": str(tmp_path / "small")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No space left on device" in done.stdout and done.stdout.endswith("[] None\n"), done


def pull(export: Path, seal: str, results: Any) -> None:
    folder = cache.cached(seal) or cache.keep(copied(export), seal=seal)
    results.put(check_contents(folder, seal=seal))


@pytest.mark.parametrize("before", ["nothing", "damaged"])
def test_several_pulls_at_once_end_with_one_model(before: str, export_folder: Path, seal: str, models: Path) -> None:
    if before == "damaged":
        cache.keep(copied(export_folder), seal=seal)
        (models / seal / "MODEL_CARD.md").write_text("damaged")
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    processes = [context.Process(target=pull, args=(export_folder, seal, results)) for _ in range(6)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [seal] * len(processes)
    for process in processes:
        process.join(60)
    assert left(models) == sorted([seal, "lock"])


def as_nobody(work: Callable[[], object]) -> str:
    """Run something as another user of this machine; return what it gave, or the error."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()

    def run() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            results.put(str(work()))
        except Exception as error:
            results.put(f"{type(error).__name__}: {error}")

    process = context.Process(target=run)
    process.start()
    told = results.get(timeout=60)
    process.join(60)
    return str(told)


@pytest.fixture
def open_to_all(tmp_path: Path) -> None:
    """Let another user get at the folders of the test."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp/pytest-of-root") or folder == tmp_path:
            folder.chmod(folder.stat().st_mode | 0o055)


@pytest.mark.skipif(not AS_ROOT, reason="takes the right to become another user")
@pytest.mark.usefixtures("open_to_all")
class TestTwoUsers:
    """The one who runs the tests, and nobody."""

    def test_what_one_has_fetched_the_other_reads(self, export_folder: Path, seal: str, models: Path) -> None:
        models.mkdir(parents=True, mode=0o755)
        cache.keep(copied(export_folder), seal=seal)
        assert as_nobody(lambda: cache.cached(seal)) == str(models / seal)

    def test_who_may_not_write_is_told(self, export_folder: Path, seal: str, models: Path, tmp_path: Path) -> None:
        models.mkdir(parents=True, mode=0o755)
        copy = shutil.copytree(export_folder, tmp_path / "copy")
        for path in (copy, *copy.iterdir()):
            path.chmod(0o755)
        told = as_nobody(lambda: cache.keep(copied(copy), seal=seal))
        assert told.startswith("RegistryError: the cache cannot be written") and "Permission denied" in told
        # what is there is used all the same, and that it cannot be noted is no error
        cache.keep(copied(copy), seal=seal)
        assert as_nobody(lambda: (cache.remember("models:/x/1", copy), cache.cached(seal))[1]) == str(models / seal)

    def test_in_a_cache_that_all_write_to_another_model_is_not_taken(
        self, export_folder: Path, seal: str, models: Path, tmp_path: Path
    ) -> None:
        models.mkdir(parents=True)
        models.chmod(0o1777)
        copy = shutil.copytree(export_folder, tmp_path / "copy")
        for path in (copy, *copy.iterdir()):
            path.chmod(0o755)
        cache.keep(copied(copy), seal=seal)
        another(models / seal)
        (models / "lock").chmod(0o666)
        assert as_nobody(lambda: cache.cached(seal)) == "None"
        assert "something else in the place of this model" in as_nobody(lambda: cache.keep(copied(copy), seal=seal))

    def test_a_note_of_a_stranger_is_not_believed(
        self, export_folder: Path, seal: str, models: Path, tmp_path: Path
    ) -> None:
        (models / "uris").mkdir(parents=True)
        (models / "uris").chmod(0o1777)
        cache.keep(copied(export_folder), seal=seal)
        note = cache._note("models:/x/1")
        as_nobody(lambda: note.write_text(json.dumps({"seal": seal})))
        assert json.loads(note.read_text()) == {"seal": seal}
        assert cache.last_known("models:/x/1") is None
        os.chown(note, 0, 0)
        assert cache.last_known("models:/x/1") == models / seal


def test_a_fetch_that_is_cut_off_is_never_taken_for_a_model(export_folder: Path, seal: str, models: Path) -> None:
    def die(target: Path) -> None:
        copied(export_folder)(target)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=lambda: cache.keep(die, seal=seal))
    process.start()
    process.join(60)
    assert process.exitcode == 9 and cache.cached(seal) is None
    # what it left is cleared away once nobody can be at work on it any more
    (remains,) = models.glob(".fetching-*")
    cache.keep(copied(export_folder), seal=seal)
    assert remains.exists()
    os.utime(remains, (0, 0))
    assert cache.keep(copied(export_folder), seal=seal) == models / seal
    assert left(models) == sorted([seal, "lock"])
