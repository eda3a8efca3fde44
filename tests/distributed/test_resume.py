"""Killing, resuming and registering real runs of launch/pretrain.py."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pretrain.ports import free_port
from tests.distributed.ranks import TIMEOUT_S, spawn

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "pretrain.py"
EPOCHS, PER_EPOCH = 30, 3
STEPS = EPOCHS * PER_EPOCH
RECIPE = """
name = "toy"
seed = 5
[data]
path = "{data}"
batch_size = 12
[modalities.a]
encoder = {{ kind = "vector", hidden = 16, dim = 8 }}
augment = {{ noise = 0.05 }}
[modalities.b]
encoder = {{ kind = "vector", hidden = 16, dim = 8 }}
augment = {{ gaussian_noise = 0.05, drop = 0.1, drop_epochs = 20 }}
[modalities.dos]
[modalities.dos.encoder]
kind = "spectrum_transformer"
patch = 6
depth = 1
heads = 2
head_dim = 4
mlp_dim = 16
dim = 8
dropout = 0.2
summary_bins = [4]
[projection]
kind = "mlp"
dim = 8
hidden = 16
dropout = 0.1
[objective]
kind = "anchored"
anchor = "a"
[optim]
lr = 1e-2
epochs = {epochs}
warmup_epochs = 2
[evaluation]
every_epochs = 10
complete_only = false
[checkpoint]
every_steps = 20
keep = 2
[deepspeed]
zero_optimization = {{ stage = 1 }}
[tracking]
experiment = "tests"
"""


@dataclass
class Workshop:
    """A folder with a recipe; runs go into its sub-folders."""

    folder: Path
    recipe: Path

    def arguments(self, out: str, *more: str) -> list[str]:
        return ["--config", str(self.recipe), "--out", str(self.folder / out), *more]

    def metrics(self, out: str) -> list[dict[str, float]]:
        """Lines of metrics without the times."""
        lines = (self.folder / out / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds")} for line in lines]

    def copy(self, source: str, target: str) -> Path:
        shutil.copytree(self.folder / source, self.folder / target)
        return self.folder / target / "checkpoints"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Workshop:
    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(data=toy_folder, epochs=EPOCHS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield Workshop(folder, recipe)


def mains(cwd: str, jobs: Sequence[Sequence[str]], script: str = "pretrain") -> list[tuple[int, str]]:
    """Run ``main`` of a script of launch/ for each job in this process; exit codes and what was written to stderr."""
    os.chdir(cwd)
    main = importlib.import_module(f"launch.{script}").main

    warnings.simplefilter("always")
    results = []
    for job in jobs:
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
            code = main(list(job))
        results.append((code, errors.getvalue()))
    return results


def run(shop: Workshop, *jobs: Sequence[str], world: int = 1) -> list[tuple[int, str]]:
    return spawn(mains, world, str(shop.folder), jobs)[0]


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> dict[str, Any]:
    """Refusals first, then a run from start to end without interruption, and refusals after it."""
    results = run(
        shop,
        shop.arguments("whole", "--resume"),
        shop.arguments("whole", "--set", "optim.lrr=1"),
        shop.arguments("whole", "--set", "data.path=/nowhere"),
        shop.arguments("whole", "--set", "tracking.register_as=toy"),
        shop.arguments("whole"),
        shop.arguments("whole", "--resume", "--set", "seed=6"),
        shop.arguments("whole", "--resume", "--set", "data.batch_size=9"),
    )
    names = ["none", "config", "data", "whole", "again", "seed", "batch"]
    return dict(zip(names, results, strict=True))


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("none", 4, "there is no checkpoint to resume from"),
        ("config", 2, "did you mean 'lr'"),
        ("data", 3, "no data set"),
        ("whole", 0, ""),
        ("again", 4, "holds the checkpoints of an earlier run"),
        ("seed", 4, "another seed"),
        ("batch", 4, "another batch_size"),
    ],
)
def test_exit_codes(whole: dict[str, Any], name: str, code: int, message: str) -> None:
    found, errors = whole[name]
    assert (found, message in errors) == (code, True), errors


@pytest.mark.usefixtures("whole")
def test_a_run_learns_and_leaves_what_it_should(shop: Workshop) -> None:
    lines = shop.metrics("whole")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "val/mrr" in line] == [30, 60, 90]
    assert sum(losses[-6:]) < 0.6 * sum(losses[:6])
    assert lines[-1]["val/mrr"] > 0.4
    checkpoints = shop.folder / "whole" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000080", "step-00000090"]
    assert not (shop.folder / "extensions").exists(), "DeepSpeed compiled something"


@pytest.fixture(scope="module")
def killed(shop: Workshop) -> None:
    """A run of the script that is ended by SIGKILL as soon as its first checkpoint appears."""
    command = [sys.executable, str(SCRIPT), *shop.arguments("killed")]
    process = subprocess.Popen(command, cwd=shop.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    first = shop.folder / "killed" / "checkpoints" / "step-00000020"
    deadline = time.monotonic() + TIMEOUT_S
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        os.sched_yield()
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, errors.decode()[-3000:]
    with (shop.folder / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "los')  # a kill may also hit in the middle of a line


@pytest.fixture(scope="module")
def resumed(shop: Workshop, whole: dict[str, Any], killed: None) -> dict[str, Any]:
    newest = sorted(shop.copy("whole", "damaged").glob("step-*"))[-1]
    flip(next((newest / "engine").rglob("*.pt")))
    for folder in shop.copy("whole", "ruined").glob("step-*"):
        flip(next((folder / "engine").rglob("*.pt")))
    torn = sorted(shop.copy("whole", "torn").glob("step-*"))[-1]
    (torn / "seal.json").unlink()
    shop.copy("whole", "finished")
    out = ["killed", "damaged", "ruined", "torn", "finished"]
    return dict(zip(out, run(shop, *(shop.arguments(name, "--resume") for name in out)), strict=True))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["killed", "damaged", "torn", "finished"])
def test_a_resumed_run_equals_one_without_interruption_bit_for_bit(
    shop: Workshop, resumed: dict[str, Any], name: str
) -> None:
    assert resumed[name][0] == 0, resumed[name][1]
    assert shop.metrics(name) == shop.metrics("whole")
    exports = [(shop.folder / out / "best" / "model.safetensors").read_bytes() for out in (name, "whole")]
    assert exports[0] == exports[1]


@pytest.mark.parametrize("name", ["damaged", "torn"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(resumed: dict[str, Any], name: str) -> None:
    assert "a damaged checkpoint is passed over" in resumed[name][1]
    assert "step-00000090" in resumed[name][1]


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(shop: Workshop, resumed: dict[str, Any]) -> None:
    code, errors = resumed["ruined"]
    assert code == 4, errors
    assert "there is no checkpoint to resume from" in errors
    assert shop.metrics("ruined") == shop.metrics("whole")


@pytest.mark.usefixtures("whole")
def test_two_ranks_under_deepspeed_resume_bit_for_bit_and_not_from_one(shop: Workshop) -> None:
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
    command = [*launcher, "--master_port", str(free_port()), str(SCRIPT), *shop.arguments("two")]
    done = subprocess.run(command, cwd=shop.folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    reference = shop.metrics("two")
    assert [line["step"] for line in reference if "loss" in line] == list(range(1, STEPS + 1))
    shutil.rmtree(shop.copy("two", "two-resumed") / "step-00000090")
    shop.copy("whole", "one-to-two")
    refused, good = run(shop, *(shop.arguments(out, "--resume") for out in ("one-to-two", "two-resumed")), world=2)
    assert refused[0] == 4
    assert "is of 1 ranks, this run has 2" in refused[1]
    assert good[0] == 0, good[1]
    assert shop.metrics("two-resumed") == reference


@pytest.mark.usefixtures("whole")
def test_the_best_model_is_registered_as_champion_and_verifies(shop: Workshop) -> None:
    import mlflow
    import torch

    from pretrain.export import read_export
    from shards.sealed import verify

    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    version = client.get_model_version_by_alias("toy", "champion")
    assert version.tags["modalities"] == "a,b,dos"
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    folder = Path(mlflow.artifacts.download_artifacts("models:/toy@champion"))
    assert verify(folder) == verify(shop.folder / "whole" / "best")
    export = read_export(folder)
    best = max(line["val/mrr"] for line in shop.metrics("whole") if "val/mrr" in line)
    assert float(version.tags["matloom.score"]) == best
    model = export.build()
    with torch.no_grad():
        z = model.embed("a", {"values": torch.ones(2, 6)})
    assert z.shape == (2, 8)

    (experiment,) = client.search_experiments(filter_string="name = 'tests'")
    finished = [r for r in client.search_runs([experiment.experiment_id]) if r.data.params["seed"] == "5"]
    history = client.get_metric_history(finished[-1].info.run_id, "loss")
    expected = {line["step"]: line["loss"] for line in shop.metrics("whole") if "loss" in line}
    assert {point.step: point.value for point in history} == expected
    assert finished[-1].data.params["optim.lr"] == "0.01"
    assert finished[-1].info.status == "FINISHED"
