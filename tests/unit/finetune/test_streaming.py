"""A stream of materials: order, quarantine, what is refused, and a kill in the middle."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from finetune.heads.base import HEADS
from finetune.loading import Foundation, PropertyModel, load
from finetune.predictor import Predictor, PredictorInfo, build_featurizer, build_head, write_predictor
from finetune.streaming import embed_stream, predict_stream
from pretrain.export import read_export
from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from shards.schema import Sample
from tests.distributed.ranks import spawn
from tests.synthetic import WIDTH

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = {"kind": "regression", "hidden": 8}
SIZES = {"part_size": 8, "batch_size": 3}


def written(
    export_folder: Path, folder: Path, seed: int = 0, head: dict[str, Any] = OPTIONS, **more: Any
) -> PropertyModel:
    """A predictor of random weights, written and loaded."""
    export = read_export(export_folder)
    info = PredictorInfo(
        targets=("gap_ev",), modalities=("a", "b"), head=head, foundation="models:/toy@champion",
        foundation_seal="0", strategy="frozen", metrics={"val_mae": 0.5}, **{"task": "regression", **more},
    )  # fmt: skip
    torch.manual_seed(seed)
    featurizer = build_featurizer(export, info.modalities, pretrained=True)
    made = build_head(HEADS.options(head), featurizer.width, info.targets)
    write_predictor(folder, Predictor(featurizer, made), export, info)
    model = load(str(folder))
    assert isinstance(model, PropertyModel)
    return model


@pytest.fixture(scope="module")
def model(export_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PropertyModel:
    return written(export_folder, tmp_path_factory.mktemp("predictor") / "p")


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def test_parts_hold_all_samples_in_order(model: PropertyModel, toy: Dataset, toy_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    done = predict_stream(model, str(toy_folder), tmp_path / "out", report=said.append, **SIZES)
    assert (done.parts, done.computed, done.rows, done.quarantined) == (8, 8, 60, 0) and len(said) == 8
    frame = pd.read_parquet(tmp_path / "out")
    assert list(frame["id"]) == toy.ids
    np.testing.assert_allclose(frame["gap_ev"], model.predict(list(toy)).values, atol=1e-6)
    assert json.loads((tmp_path / "out" / "_summary.json").read_text())["rows"] == 60


def test_what_is_there_is_not_computed_again(model: PropertyModel, toy: Dataset, tmp_path: Path) -> None:
    predict_stream(model, toy, tmp_path, **SIZES)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")}
    (tmp_path / "part-000003.parquet").unlink()
    done = predict_stream(model, toy, tmp_path, resume=True, **SIZES)
    assert done.computed == 1 and done.rows == 60
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == ["part-000003.parquet"]


@pytest.mark.parametrize("change", ["model", "data", "part_size", "batch_size", "what"])
def test_another_model_data_or_size_is_refused(
    change: str, model: PropertyModel, toy: Dataset, export_folder: Path, foundation: Foundation, tmp_path: Path
) -> None:  # fmt: skip
    out = tmp_path / "out"
    predict_stream(model, toy, out, **SIZES)
    kept = parts(out)
    others: dict[str, Callable[..., Any]] = {
        "model": lambda **sizes: predict_stream(written(export_folder, tmp_path / "p", seed=1), toy, out, **sizes),
        "data": lambda **sizes: predict_stream(model, list(map(str, range(60))), out, **sizes),
        "part_size": lambda **sizes: predict_stream(model, toy, out, **{**sizes, "part_size": 9}),
        "batch_size": lambda **sizes: predict_stream(model, toy, out, **{**sizes, "batch_size": 4}),
        "what": lambda **sizes: embed_stream(foundation, toy, out, **sizes),
    }
    with pytest.raises(ConfigError, match=f"another '{change}'"):
        others[change](resume=True, **SIZES)
    assert parts(out) == kept


def test_a_folder_with_something_in_it_is_left_alone(model: PropertyModel, toy: Dataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="holds something"):
            predict_stream(model, toy, tmp_path, resume=resume, **SIZES)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]
    predict_stream(model, toy, tmp_path / "new", **SIZES)
    with pytest.raises(ConfigError, match="--resume"):
        predict_stream(model, toy, tmp_path / "new", **SIZES)


def broken(toy: Dataset) -> list[Any]:
    """Eight materials of which five cannot be used, each for another reason."""
    good = [toy[i] for i in range(3)]

    def with_values(id: str, values: Any) -> Sample:
        return replace(toy[3], id=id, arrays={"a": {"values": np.asarray(values, np.float32)}})

    nan, wide = with_values("none", [np.nan] * WIDTH), with_values("wide", np.ones(WIDTH + 1))
    huge = with_values("huge", [3e38] * WIDTH)
    return [good[0], Sample(id="empty"), {"id": "short", "a": np.ones(2)}, good[1], nan, wide, huge, good[2]]


def test_bad_materials_are_put_aside_with_their_reasons(model: PropertyModel, toy: Dataset, tmp_path: Path) -> None:
    done = predict_stream(model, broken(toy), tmp_path, part_size=4, batch_size=2)
    assert (done.rows, done.quarantined, done.parts) == (3, 5, 2)
    frame = pd.read_parquet(tmp_path)
    assert list(frame["id"]) == toy.ids[:3] and np.isfinite(frame["gap_ev"]).all()
    table = pd.read_csv(tmp_path / "_quarantined.csv")
    assert list(table["id"]) == ["empty", "short", "none", "wide", "huge"]
    for reason, word in zip(
        table["reason"], ("none of the modalities", "axis", "NaN", "axis", "result is not finite"), strict=True
    ):
        assert word in reason


def test_a_damaged_sample_of_the_shards_is_put_aside(model: PropertyModel, toy_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"Li0.20CoO2", b"Li0.20CoO3"))
    done = predict_stream(model, folder, tmp_path / "out", **SIZES)
    assert done.quarantined == 1 and done.rows == 59
    (bad,) = pd.read_csv(tmp_path / "out" / "_quarantined.csv").itertuples()
    assert bad.id == "mp/6.Li0.20CoO2" and "shard-000001" in bad.reason


def test_a_part_of_which_nothing_can_be_used_has_the_columns(
    model: PropertyModel, toy: Dataset, tmp_path: Path
) -> None:
    predict_stream(model, [Sample(id=str(i)) for i in range(4)] + [toy[0]], tmp_path, part_size=4, batch_size=2)
    frame = pd.read_parquet(tmp_path)
    assert list(frame.columns) == ["id", "gap_ev"] and list(frame["id"]) == [toy.ids[0]]


def test_an_iterator_is_resumed_by_its_ids(model: PropertyModel, toy: Dataset, tmp_path: Path) -> None:
    predict_stream(model, list(toy), tmp_path / "whole", **SIZES)
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="the disk is gone"):
        predict_stream(model, itertools.chain((toy[i] for i in range(21)), failing()), out, **SIZES)
    assert len(parts(out)) == 2
    with pytest.raises(ConfigError, match="other materials"):
        predict_stream(model, (toy[i] for i in range(1, 60)), out, resume=True, **SIZES)
    done = predict_stream(model, iter(toy), out, resume=True, **SIZES)
    assert done.computed == 6 and parts(out) == parts(tmp_path / "whole")


def failing() -> Any:
    raise RuntimeError("the disk is gone")
    yield


def test_embeddings_stream_alike(foundation: Foundation, toy: Dataset, tmp_path: Path) -> None:
    done = embed_stream(foundation, toy, tmp_path, modality="b", **SIZES)
    have = [sample for sample in toy if "b" in sample.modalities]
    assert done.rows == len(have) and done.quarantined == 60 - len(have) > 0
    frame = pd.read_parquet(tmp_path)
    assert list(frame["id"]) == [sample.id for sample in have]
    np.testing.assert_allclose(np.stack(frame["embedding"]), foundation.embed(have, "b"), atol=1e-6)
    with pytest.raises(ConfigError, match="no modality 'zzz'"):
        embed_stream(foundation, toy, tmp_path / "x", modality="zzz")


def test_the_wrong_kind_of_model_is_said(
    foundation: Foundation, model: PropertyModel, toy: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="head"):
        predict_stream(foundation, toy, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no embeddings"):
        embed_stream(model, toy, tmp_path)  # type: ignore[arg-type]


@pytest.mark.slow
def test_local_processes_compute_the_same_bytes(
    model: PropertyModel, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    predict_stream(model, toy_folder, tmp_path / "one", **SIZES)
    done = predict_stream(model, toy_folder, tmp_path / "two", workers=2, **SIZES)
    assert done.computed == 8 and parts(tmp_path / "two") == parts(tmp_path / "one")


def test_a_dask_cluster_computes_the_same_bytes(model: PropertyModel, toy_folder: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    predict_stream(model, toy_folder, tmp_path / "one", **SIZES)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        done = predict_stream(model, toy_folder, tmp_path / "two", scheduler=cluster.scheduler_address, **SIZES)
    assert done.computed == 8 and parts(tmp_path / "two") == parts(tmp_path / "one")


def on_a_rank(folder: str, data: str, out: str, resume: bool) -> tuple[int, int]:
    model = load(folder)
    assert isinstance(model, PropertyModel)
    done = predict_stream(model, data, out, resume=resume, **SIZES)
    return done.computed, done.rows


def test_ranks_share_the_parts(model: PropertyModel, toy_folder: Path, tmp_path: Path) -> None:
    predict_stream(model, toy_folder, tmp_path / "one", **SIZES)
    out = tmp_path / "two"
    assert spawn(on_a_rank, 2, str(model.folder), str(toy_folder), str(out), False) == [(4, 60), (4, 60)]
    assert parts(out) == parts(tmp_path / "one")
    # one rank goes on where two were
    (out / "part-000001.parquet").unlink()
    assert predict_stream(model, toy_folder, out, resume=True, **SIZES).computed == 1
    assert parts(out) == parts(tmp_path / "one")


KILLED = """
import os, signal, sys
import finetune.stream_parts as module
from finetune import load
from finetune.streaming import predict_stream

folder, data, out, last = sys.argv[1:]
publish, done = os.replace, []

def replace(source, target):
    # the kill comes when a part is written and not yet published
    if "part-" in str(target) and len(done) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    publish(source, target)
    done.append(target) if "part-" in str(target) else None

module.os.replace = replace
predict_stream(load(folder), data, out, resume=True, part_size=8, batch_size=3)
"""


def test_a_killed_stream_goes_on_bitwise(model: PropertyModel, toy_folder: Path, tmp_path: Path) -> None:
    predict_stream(model, toy_folder, tmp_path / "whole", **SIZES)
    out = tmp_path / "out"
    code = [sys.executable, "-c", KILLED, str(model.folder), str(toy_folder), str(out)]
    killed = subprocess.run([*code, "3"], cwd=ROOT, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(parts(out)) == 3 and list(out.glob(".part-*.partial")) and not (out / "_summary.json").exists()
    done = predict_stream(model, toy_folder, out, resume=True, **SIZES)
    assert done.computed == 5 and parts(out) == parts(tmp_path / "whole")
    assert not list(out.glob(".part-*.partial"))


def test_a_damaged_part_is_named(model: PropertyModel, toy: Dataset, tmp_path: Path) -> None:
    predict_stream(model, toy, tmp_path, **SIZES)
    part = tmp_path / "part-000002.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"part-000002"):
        predict_stream(model, toy, tmp_path, resume=True, **SIZES)


@pytest.mark.slow
def test_a_hundred_thousand_materials_take_little_memory(model: PropertyModel, tmp_path: Path) -> None:
    import psutil

    rng = np.random.default_rng(0)
    peaks: list[int] = []

    def materials(number: int) -> Any:
        for i in range(number):
            yield Sample(id=str(i), arrays={"a": {"values": rng.normal(size=WIDTH).astype(np.float32)}})

    def watch(line: str) -> None:
        peaks.append(psutil.Process().memory_info().rss)

    done = predict_stream(model, materials(100_000), tmp_path, batch_size=512, report=watch)
    assert (done.rows, done.parts) == (100_000, 25)
    assert list(pd.read_parquet(tmp_path, columns=["id"])["id"]) == [str(i) for i in range(100_000)]
    # what the first parts bring along is there at the third; from there on it stays
    assert peaks[-1] - peaks[3] < 50e6
