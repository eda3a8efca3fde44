"""Resuming and registering real runs of launch/pretrain.py; at other numbers of ranks too."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.ports import free_port
from tests.distributed.ranks import TIMEOUT_S, variables
from tests.distributed.runs import PER_EPOCH, SCRIPT, Workshop

EPOCHS = 30
STEPS = EPOCHS * PER_EPOCH


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[Workshop]:
    shop = Workshop.make(tmp_path_factory.mktemp("runs"), toy_folder, epochs=EPOCHS, evaluate=10, save=20)
    with variables(shop.environment()):
        yield shop


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> dict[str, Any]:
    """Refusals first, then a run from start to end without interruption, and refusals after it."""
    results = shop.run(
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
def resumed(shop: Workshop, whole: dict[str, Any]) -> dict[str, Any]:
    newest = sorted(shop.copy("whole", "damaged").glob("step-*"))[-1]
    flip(next((newest / "engine").rglob("*.pt")))
    for folder in shop.copy("whole", "ruined").glob("step-*"):
        flip(next((folder / "engine").rglob("*.pt")))
    torn = sorted(shop.copy("whole", "torn").glob("step-*"))[-1]
    (torn / "seal.json").unlink()
    with (shop.folder / "torn" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 91, "los')  # a kill may also hit in the middle of a line
    shop.copy("whole", "finished")
    shop.copy("ruined", "ruined-auto")
    out = ["damaged", "ruined", "torn", "finished"]
    return dict(zip(out, shop.run(*(shop.arguments(name, "--resume") for name in out)), strict=True))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["damaged", "torn", "finished"])
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
    ((auto, told),) = shop.run(shop.arguments("ruined-auto", "--resume", "auto"))
    for code, errors in (resumed["ruined"], (auto, told)):
        assert code == 4, errors
        assert "there is no checkpoint to resume from" in errors
    assert shop.metrics("ruined") == shop.metrics("ruined-auto") == shop.metrics("whole")


@pytest.mark.slow
def test_two_ranks_under_deepspeeds_launcher_resume_bit_for_bit(shop: Workshop) -> None:
    short = ["--set", "optim.epochs=8", "--set", "checkpoint.every_steps=12", "--set", "evaluation.every_epochs=4"]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
    command = [*launcher, "--master_port", str(free_port()), str(SCRIPT), *shop.arguments("two", *short)]
    done = subprocess.run(command, cwd=shop.folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [line["step"] for line in shop.metrics("two") if "loss" in line] == list(range(1, 8 * PER_EPOCH + 1))
    shutil.rmtree(shop.copy("two", "two-resumed") / "step-00000024")
    ((code, told),) = shop.run(shop.arguments("two-resumed", "--resume", *short), world=2)
    assert code == 0, told
    assert shop.same("two-resumed", "two")


def stopping(after: int | None) -> None:
    """Patch this rank: write down its samples, and ask the run to end after a step."""
    from pretrain.train import Trainer
    from shards.batch import Batch

    advance = Trainer._advance

    def patched(self: Trainer, batch: Batch, waited: float) -> bool:
        if self.step + 1 == after:
            self.signals.request("the test")
        with (self.out / "samples").open("a") as file:
            file.write(json.dumps([self.step, batch.ids]) + "\n")
        return advance(self, batch, waited)

    Trainer._advance = patched  # type: ignore[method-assign, assignment]


def samples(shop: Workshop, out: str) -> list[set[str]]:
    """The samples of every step, of all ranks together."""
    found: dict[int, list[str]] = {}
    for line in (shop.folder / out / "samples").read_text().splitlines():
        step, ids = json.loads(line)
        found.setdefault(step, []).extend(ids)
    assert all(len(ids) == len(set(ids)) for ids in found.values()), "a sample twice in a step"
    return [set(found[step]) for step in sorted(found)]


def test_a_run_goes_on_with_other_numbers_of_ranks(shop: Workshop) -> None:
    """Without random numbers that belong to a rank the losses are those of one rank from start to end."""
    exact = ["optim.epochs=8", "evaluation.every_epochs=4", "projection.dropout=0.0"]
    options = [part for item in [*exact, "modalities.dos.encoder.dropout=0.0"] for part in ("--set", item)]
    ((code, told),) = shop.run(shop.arguments("straight", *options), patch=functools.partial(stopping, None))
    assert code == 0, told
    for world, stop, expected in ((1, 6, 75), (2, 12, 75), (4, 18, 75), (1, None, 0)):
        job = shop.arguments("worlds", "--resume", "auto", *options)
        ((code, told),) = shop.run(job, world=world, patch=functools.partial(stopping, stop))
        assert code == expected, told
    assert samples(shop, "worlds") == samples(shop, "straight")
    assert len(samples(shop, "worlds")) == 8 * PER_EPOCH
    found, reference = ([line for line in shop.metrics(out) if "loss" in line] for out in ("worlds", "straight"))
    assert [line["step"] for line in found] == [line["step"] for line in reference]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in reference], rel=1e-4)


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
