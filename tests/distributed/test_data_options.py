"""Runs over a mix, by a curriculum, under a budget: one rank equals two, and a run resumes within an epoch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.build import build
from tests.distributed.ranks import spawn
from tests.distributed.runs import MACHINE, mains
from tests.synthetic import FEATURES, SPLITS, records

RECIPE = """
name = "mixed"
seed = 5
[data]
mix = [{{ path = "{one}", weight = 2 }}, {{ path = "{two}", weight = 1 }}]
epoch_samples = 50
batch_size = 14
workers = 2
[data.order]
kind = "curriculum"
difficulty = "missing"
epochs = 3
[data.budget]
axis = "crystal.edges"
max = 40
[modalities.a]
encoder = {{ kind = "vector", hidden = 16, dim = 8 }}
augment = {{ noise = 0.05 }}
[modalities.b]
encoder = {{ kind = "vector", hidden = 16, dim = 8 }}
[projection]
dim = 8
[objective]
kind = "anchored"
anchor = "a"
[optim]
lr = 1e-2
epochs = 4
warmup_epochs = 1.5
[evaluation]
every_epochs = 2
complete_only = false
[checkpoint]
every_steps = 7
keep = 9
[tracking]
experiment = "mixed"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    steps = {name: FEATURES[name] for name in ("a", "crystal")}
    build(records(24), steps, folder / "small", name="small", splits=SPLITS, shard_samples=7)
    (folder / "recipe.toml").write_text(RECIPE.format(one=toy_folder, two=folder / "small"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield folder


def run(folder: Path, *jobs: list[str], world: int = 1) -> list[tuple[int, str]]:
    config = ["--config", str(folder / "recipe.toml"), "--out"]
    return spawn(mains, world, str(folder), [[*config, str(folder / out), *more] for out, *more in jobs])[0]


def metrics(folder: Path, out: str) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith(MACHINE)} for line in lines]


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[dict[str, float]]:
    ((code, errors),) = run(folder, ["whole"])
    assert code == 0, errors
    return metrics(folder, "whole")


def test_the_schedule_counts_the_steps_that_are_made(whole: list[dict[str, float]]) -> None:
    """Epochs differ in steps; the warm-up ends after 1.5 of them, the cosine with the last step."""
    evaluated = [int(line["step"]) for line in whole if "val/mrr" in line]
    steps = [line for line in whole if "lr" in line]
    total = len(steps)
    assert [line["step"] for line in steps] == list(range(1, total + 1))
    assert len(evaluated) == 2 and evaluated[1] == total
    assert total > 4 * 4, "the budget cuts nothing: 50 samples are 4 batches of 14"
    rates = [line["lr"] for line in steps]
    peak = rates.index(max(rates)) + 1
    assert max(rates) == pytest.approx(1e-2)
    assert evaluated[0] * 0.6 < peak < evaluated[0] * 0.9
    np.testing.assert_allclose(rates[:peak], 1e-2 * np.arange(1, peak + 1) / peak)
    progress = np.arange(total - peak) / (total - peak)
    np.testing.assert_allclose(rates[peak:], 0.5e-2 * (1 + np.cos(np.pi * progress)))


def test_it_resumes_bit_for_bit_in_the_middle_of_an_epoch_and_with_nothing_else(
    folder: Path, toy_folder: Path, whole: list[dict[str, float]]
) -> None:
    names = ["resumed", "order", "budget", "mix"]
    for name in names:
        shutil.copytree(folder / "whole", folder / name)
        for newer in sorted((folder / name / "checkpoints").glob("step-*"))[1:]:
            shutil.rmtree(newer)
    results = run(
        folder,
        ["resumed", "--resume", "--set", "data.workers=0"],
        ["order", "--resume", "--set", "data.order.power=2"],
        ["budget", "--resume", "--set", "data.budget.max=41"],
        ["mix", "--resume", "--set", f'data.mix=[{{ path = "{folder / "small"}" }}, {{ path = "{toy_folder}" }}]'],
    )
    assert results[0][0] == 0, results[0][1]
    assert metrics(folder, "resumed") == whole
    assert "step-00000007" in sorted(path.name for path in (folder / "order" / "checkpoints").iterdir())
    for (code, errors), name in zip(results[1:], ("order", "budget", "data_sha256"), strict=True):
        assert (code, f"another {name}" in errors) == (4, True), errors


def test_two_ranks_make_the_steps_of_one(folder: Path, whole: list[dict[str, float]]) -> None:
    ((code, errors),) = run(folder, ["two"], world=2)
    assert code == 0, errors
    two = metrics(folder, "two")
    assert [(line["step"], line.get("lr")) for line in two] == [(line["step"], line.get("lr")) for line in whole]
    for one, other in zip(whole, two, strict=True):
        assert other.get("loss") == pytest.approx(one.get("loss"), abs=2e-3)
