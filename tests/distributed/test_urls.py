"""Pretraining and fine-tuning of two ranks of a node on a data set behind a URL, as on the same in a folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.manifest import read_manifest
from tests.distributed.ranks import spawn
from tests.distributed.runs import MACHINE, mains
from tests.pictures import CROP, build_pictures
from tests.servers import http_server

PRETRAIN = f"""
name = "pictures"
[data]
batch_size = 8
[modalities.a]
encoder = {{ kind = "vector", hidden = 16, dim = 8 }}
[modalities.sem]
encoder = {{ kind = "flat_image" }}
augment = {{ crop = {CROP}, flip = 0.5 }}
[projection]
dim = 8
[objective]
kind = "anchored"
anchor = "a"
[optim]
epochs = 2
warmup_epochs = 0
[evaluation]
every_epochs = 1
"""
FINETUNE = """
name = "gap"
target = "gap_ev"
seeds = [0]
rows = [{ strategy = "probe", modalities = ["sem"] }, { strategy = "full", modalities = ["a", "sem"] }]
[optim]
epochs = 2
batch_size = 8
"""


def launched(cwd: str, jobs: list[list[str]], script: str) -> list[tuple[int, str]]:
    """`mains` in a process that knows the encoder of `tests.pictures`."""
    return mains(cwd, jobs, script=script)


def without_times(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith(MACHINE)} for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Counter[str]]]:
    """Two ranks make every run from the folder and from its URL; yields where, and how often a file was asked for."""
    folder = tmp_path_factory.mktemp("urls")
    build_pictures(folder / "set")
    (folder / "pretrain.toml").write_text(PRETRAIN)
    (folder / "finetune.toml").write_text(FINETUNE)
    with http_server(folder / "set") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MATLOOM_CACHE", str(folder / "cache"))
        places = {"local": str(folder / "set"), "remote": server.url}
        for script, options in (("pretrain", pretraining), ("finetune", finetuning)):
            jobs = [options(folder, *place) for place in places.items()]
            for results in spawn(launched, 2, str(folder), jobs, script):
                assert [code for code, _ in results] == [0, 0], results
        yield folder, Counter(name for name, _, _ in server.requests)


def pretraining(folder: Path, out: str, data: str) -> list[str]:
    return ["--config", str(folder / "pretrain.toml"), "--out", str(folder / out), "--set", f"data.path={data}"]


def finetuning(folder: Path, out: str, data: str) -> list[str]:
    options = ["--set", f"data={data}", "--set", f"model={folder / out / 'best'}"]
    return ["--config", str(folder / "finetune.toml"), "--out", str(folder / out / "finetuned"), *options]


def test_pretraining_takes_the_same_steps(runs: tuple[Path, Counter[str]]) -> None:
    folder, _ = runs
    steps = without_times(folder / "remote")
    assert steps == without_times(folder / "local")
    assert sum("loss" in line for line in steps) == 2 * -(-36 // 8)
    assert [line["step"] for line in steps if "val/mrr" in line] == [5, 10]


def test_fine_tuning_makes_the_same_table(runs: tuple[Path, Counter[str]]) -> None:
    folder, _ = runs
    tables = [(folder / out / "finetuned" / "report" / "table.json").read_text() for out in ("local", "remote")]
    assert tables[0] == tables[1]
    assert [row["strategy"] for row in json.loads(tables[0])["rows"]] == ["probe", "full"]


def test_the_node_fetches_each_file_once(runs: tuple[Path, Counter[str]]) -> None:
    """Four processes in all have read it; seal and manifest are looked at by each, to see whether they are new."""
    folder, asked = runs
    manifest = read_manifest(folder / "set")
    for entry in manifest.shards:
        assert (asked[entry.file], asked[entry.index]) == (1, 1), asked
