"""Hostile entries: names, aliases, tags, places and files are refused or shown spelled out, and do nothing else."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import typer
from mlflow import MlflowClient

from finetune.registry import uris
from launch.guard import guarded
from launch.registry_cli import registry_app
from pretrain.tracking import SEAL_TAG
from shards.quoting import markdown, printable
from shards.sealed import SEAL, sealing, sha256

NAMES = {
    "up": "..",
    "up and away": "../../escape",
    "absolute": "/etc/passwd",
    "home": "~",
    "shell": "$(touch CANARY)",
    "backticks": "`touch CANARY`",
    "a line of ours": "x\nok       models:/all/1",
    "nul": "a\x00b",
    "clears the screen": "\x1b[2J\x1b[31mred",
    "title of the terminal": "\x1b]0;owned\x07",
    "one byte escape": "\x9b2J",
    "carriage return": "good\rbad",
    "written backwards": "\u202egnp.exe",
    "no width": "to\u200by",
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "long": "x" * 5000,
    "upper": "Twin",
    "lower": "twin",
    "device": "CON",
    "device with an ending": "NUL.json",
    "option": "--out",
    "logged model": "m-0123",
    "sql": "x'; DROP TABLE registered_models; --",
    "format": "%s%n{0.__class__}",
    "blank": " ",
}
ALIASES = {"path": "../../x", "colour": "\x1b[31m", "line": "champion\nchampion", "markup": "<b>", "long": "a" * 4000}
TAGS = {
    "modalities": {"modalities": "\x1b[2Ja," * 500},
    "no digest": {SEAL_TAG: "../../../etc"},
    "of another": {SEAL_TAG: "f" * 64},
    "not hex": {SEAL_TAG: "\x1b[2J"},
    "score": {"matloom.score": "__import__('os').system('touch CANARY')"},
    "key": {"\x1b[2J/../..": "x"},
}
PROMOTIONS = {
    "colours": {"who": "\x1b[31mroot", "why": "x\nchampion -> 9\u202e", "metric": "<b>\x07"},
    "no time": {"time_ms": 10**30},
    "version": {"version": "../../etc", "previous": "\x1b[2J"},
    "more fields": {"__class__": "os.system"},
    "number": {"number": -1},
}
PLACES = {
    "file": "file:///etc/passwd",
    "root": "file:///",
    "device": "file:///dev/zero",
    "share": "file://127.0.0.1/share",
    "above": "../../../..",
    "home": "~/.ssh",
    "http": "http://127.0.0.1:{port}/model",
    "password": "http://user:word@127.0.0.1:{port}/model",
    "ftp": "ftp://127.0.0.1:{port}/model",
    "sftp": "sftp://127.0.0.1:{port}/model",
    "hdfs": "hdfs://127.0.0.1:{port}/model",
    "artifacts of another": "mlflow-artifacts://127.0.0.1:{port}/model",
    "dbfs": "dbfs:/model",
    "run": "runs:/0123/model",
    "model": "models:/m-0123",
    "javascript": "javascript:alert(1)",
    "shell": "$(touch CANARY)",
    "windows": "\\\\127.0.0.1\\share",
    "nul": "a\x00b",
    "colour": "http://\x1b[2J",
    "empty": "",
}


def sealed(export: Path, target: Path, change: Callable[[Path], None]) -> None:
    """Write a model as somebody would who may write to the store: changed first, sealed properly afterwards."""
    with sealing(target) as stage:
        shutil.copytree(export, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SEAL))
        (stage / "MODEL_CARD.md").write_text(f"a card of its own: {target.name}")
        change(stage)


def added(name: str, text: str = "{}") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def linked(folder: Path) -> None:
    (folder / "config.json").symlink_to("/etc/passwd")


def hard_linked(folder: Path) -> None:
    os.link(folder / "recipe.json", folder / "config.json")


def folder_linked(folder: Path) -> None:
    (folder / "assets").symlink_to("/etc", target_is_directory=True)


def huge(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 30)


# whether it is a model all the same
FILES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "link": (linked, False),
    "folder link": (folder_linked, False),
    "hard link": (hard_linked, True),
    "huge": (huge, False),
    "unknown table": (added("extra.json"), False),
    "device": (added("CON.json"), False),
    "other case": (added("RECIPE.JSON"), False),
    "line": (added("recipe.json\nok"), False),
    "colour": (added("\x1b[2J.json"), False),
    "backwards": (added("a\u202enosj.json"), False),
    "shell": (added("$(touch CANARY).json"), False),
    "long": (added("a" * 250 + ".json"), False),
    "hidden": (added(".bashrc"), False),
    "card": (added("README.md", "\x1b[2J<script>alert(1)</script>"), True),
}


@dataclass
class Hostile:
    """A store full of them, and what stands beside it."""

    folder: Path
    port: int
    uris: dict[str, str]
    _socket: socket.socket

    def files(self) -> dict[str, int]:
        """All that a command could have written outside of the cache, but for the store's own database."""
        own = (self.folder / "home" / ".cache", self.folder / "store" / "mlflow.db")
        found = (path for path in self.folder.rglob("*") if not any(path.is_relative_to(place) for place in own))
        return {str(path): path.lstat().st_mtime_ns for path in found if path.name != "home"}

    def asked(self) -> bool:
        """Whether anybody has connected to the host that the places name."""
        try:
            self._socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


def version(name: str, place: str, tags: dict[str, str] | None = None) -> str:
    client = MlflowClient()
    client.create_registered_model(name)
    client.create_model_version(name, place or "x", tags=tags)
    return f"models:/{name}/1"


@pytest.fixture(scope="module")
def hostile(export_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("home", "tmp", "here", "store"):
        (folder / name).mkdir()
    database, seal = folder / "store" / "mlflow.db", sha256(export_folder / SEAL)
    with pytest.MonkeyPatch.context() as patch, closing(socket.create_server(("127.0.0.1", 0))) as listening:
        listening.setblocking(False)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
        # a store that an earlier test has named goes before the variable
        mlflow.set_tracking_uri(f"sqlite:///{database}")
        patch.setenv("MATLOOM_CACHE", str(folder / "home" / ".cache"))
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "a-password")
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        patch.chdir(folder / "here")
        port = listening.getsockname()[1]
        found = _fill(export_folder, folder / "store", database, seal, port)
        yield Hostile(folder, port, found, listening)


def _fill(export: Path, store: Path, database: Path, seal: str, port: int) -> dict[str, str]:
    good, found = {SEAL_TAG: seal}, {}
    rewritten: list[tuple[str, tuple[Any, ...]]] = []
    for kind in NAMES:
        found[f"name {kind}"] = version(f"name {kind}", str(export), good)
    for kind, alias in ALIASES.items():
        found[f"alias {kind}"] = version(f"alias {kind}", str(export), good)
        row = ("default", f"alias {kind}", alias, 1)
        rewritten.append(
            ("INSERT INTO registered_model_aliases (workspace, name, alias, version) VALUES (?,?,?,?)", row)
        )
    for kind, tags in TAGS.items():
        found[f"tag {kind}"] = version(f"tag {kind}", str(export), good)
        for key, value in tags.items():
            statement = (
                "INSERT OR REPLACE INTO model_version_tags (workspace, name, version, key, value) VALUES (?,?,?,?,?)"
            )
            rewritten.append((statement, ("default", f"tag {kind}", 1, key, value)))
    for kind, fields in PROMOTIONS.items():
        found[f"promotion {kind}"] = version(f"promotion {kind}", str(export), good)
        record = {"number": 1, "alias": "champion", "version": "1", "previous": "", "who": "", "why": "", "metric": ""}
        text = json.dumps({**record, "time_ms": 1, **fields})
        MlflowClient().set_registered_model_tag(f"promotion {kind}", "matloom.promotion.champion.000001", text)
    for kind, place in PLACES.items():
        found[f"place {kind}"] = version(f"place {kind}", "x")
        there = place.format(port=port)
        rewritten.append(
            ("UPDATE model_versions SET source=?, storage_location=? WHERE name=?", (there, there, f"place {kind}"))
        )
    for number, (kind, (change, _)) in enumerate(FILES.items()):
        sealed(export, store / str(number), change)
        own = sha256(store / str(number) / SEAL)
        found[f"file {kind}"] = version(f"file {kind}", str(store / str(number)), {SEAL_TAG: own})
    MlflowClient().update_registered_model("name markup", "\x1b[2J<script>alert(1)</script>$(touch CANARY)")
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement, values in rewritten:
            connection.execute(statement, values)
        for kind, name in NAMES.items():
            for table in ("registered_models", "model_versions", "model_version_tags"):
                connection.execute(f"UPDATE {table} SET name=? WHERE name=?", (name, f"name {kind}"))
            found[f"name {kind}"] = f"models:/{name}/1"
    return found


def matloom(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command as the shell does; whatever it prints must be harmless."""
    ended: list[int] = []

    def run() -> None:
        ended.append(typer.main.get_command(registry_app)(list(arguments), standalone_mode=False) or 0)

    code = guarded(run)
    told = "".join(capsys.readouterr())
    assert all(sign.isprintable() or sign == "\n" for sign in told)
    assert "internal error" not in told and "a-password" not in told
    return code or ended[0], told


def test_there_are_more_than_thirty() -> None:
    assert sum(map(len, PARTS.values())) > 70


def test_all_are_listed_and_verified_in_lines_of_their_own(
    hostile: Hostile, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hostile.files()
    code, told = matloom(capsys, "list")
    assert code == 0 and len(told.splitlines()) == len(hostile.uris)
    assert max(map(len, told.splitlines())) < 1500 and "\\x1b[2J\\x1b[31mred" in told and "\\u202egnp.exe" in told
    code, told = matloom(capsys, "list", "--json")
    assert code == 0 and {row["name"] for row in json.loads(told)} >= set(NAMES.values())
    code, told = matloom(capsys, "verify")
    lines = told.splitlines()
    assert code == 4 and len(lines) == len(hostile.uris)
    refused = {f"{uri}  " for kind, uri in hostile.uris.items() if not is_a_model(kind)}
    assert sum(line.startswith("REFUSED") for line in lines) == len(refused)
    assert hostile.files() == before and not hostile.asked()


def is_a_model(kind: str) -> bool:
    part, _, which = kind.partition(" ")
    if part == "file":
        return FILES[which][1]
    if part == "tag":
        return SEAL_TAG not in TAGS[which]
    # MLflow's own rules for names and URIs keep these out
    no_names = ("up", "up and away", "absolute", "blank", "logged model", "a line of ours", "markup")
    return part in ("alias", "promotion") or (part == "name" and which not in no_names)


PARTS = {"name": NAMES, "alias": ALIASES, "promotion": PROMOTIONS, "tag": TAGS, "place": PLACES, "file": FILES}
CASES = [(f"{part} {kind}", False) for part, kinds in PARTS.items() for kind in kinds]
# what is fetched in another way from a server
CASES += [(f"{part} {kind}", True) for part in ("tag", "place", "file") for kind in PARTS[part]]


@pytest.mark.parametrize(("kind", "server"), CASES)
def test_each_is_refused_or_harmless(
    kind: str, server: bool, hostile: Hostile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``server``: as one gets it from a server, by way of the cache."""
    if server:
        monkeypatch.setattr(uris, "is_local", lambda: False)
    before, uri = hostile.files(), hostile.uris[kind]
    code, told = matloom(capsys, "pull", "--json", "--", uri)
    assert (code == 0) == is_a_model(kind), told
    if code == 0:
        folder = Path(json.loads(told)["folder"])
        assert (folder.parent == hostile.folder / "home" / ".cache" / "models") == server
    matloom(capsys, "show", "--", uri.removeprefix("models:/").removesuffix("/1"))
    assert hostile.files() == before and not hostile.asked()
    assert not [path for path in hostile.folder.rglob("*") if path.name == "CANARY"]


def test_names_that_differ_in_case_alone_are_two_models(hostile: Hostile) -> None:
    for name in ("Twin", "twin"):
        (entry,) = (uris.find(f"models:/{name}/1"),)
        assert entry is not None and entry.name == name


def test_what_is_shown_is_spelled_out_once() -> None:
    assert printable("a\x1b[2J\n\u202e\x9b") == "a\\x1b[2J\\n\\u202e\\x9b"
    assert printable("a\nb", lines=True) == "a\nb" and len(printable("x" * 999)) == 303
    assert markdown("`<b>|`\n![x](y)") == "'&lt;b&gt;\\|'\\n![x](y)"
