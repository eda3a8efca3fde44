"""`matloom launch estimate`, and the dry run of a recipe with its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.estimates.step import step_time
from pretrain.memory import Buffers
from tests import commands
from tests.distributed.runs import Workshop
from tests.unit.launch.estimates.constants import WORK


@pytest.fixture
def shop(tmp_path: Path, toy_folder: Path) -> Workshop:
    return Workshop.make(tmp_path, toy_folder, epochs=4, evaluate=2, save=5)


def told(shop: Workshop, *arguments: object, code: int = 0, **environment: str) -> str:
    found, text, errors = commands.matloom(
        *arguments, folder=shop.folder, environment={"COLUMNS": "200", "OMP_NUM_THREADS": "1", **environment}
    )
    assert found == code, text + errors
    return text if code == 0 else text + errors


def test_a_dry_run_shows_all_that_a_run_would_be(shop: Workshop) -> None:
    secret = "canary-0815-canary"
    text = told(
        shop, "pretrain", shop.recipe, "--accelerators", 2, "--dry-run", "--calibrate", 1, "--json",
        "--deepspeed-config", "zero2", MLFLOW_TRACKING_PASSWORD=secret, NCCL_DEBUG="WARN",
    )  # fmt: skip
    found: dict[str, Any] = json.loads(text)
    assert secret not in text and found["environment"]["MLFLOW_TRACKING_PASSWORD"] == "***"
    assert found["environment"]["NCCL_DEBUG"] == "WARN"
    assert found["command"][-1].endswith("launch/profiles/zero2.json")
    assert found["commands"]["localhost"][-1] == "launch.hosts.agent"
    assert (found["calibration"]["stage"], found["calibration"]["rows"], found["calibration"]["steps"]) == (2, 6, 1)
    time = found["time"]
    assert time["total"] == pytest.approx(sum(time[name] for name in ("steps", "evaluations", "checkpoints", "start")))
    assert time["steps"] == pytest.approx(12 * time["step"])
    disk = found["disk"]
    # two of the newest, no best one, one that is being written
    assert disk["needed"] == 3 * found["checkpoint"] + 4 * sum(found["parameters"].values()) < disk["free"]
    assert not (shop.folder / "runs").exists() and not (shop.folder / "mlflow.db").exists()


def test_a_dry_run_without_steps_names_no_time(shop: Workshop) -> None:
    options = ("--dry-run", "--calibrate", 0, "--deepspeed-config", "zero3-offload")
    text = told(shop, "launch", "run", shop.recipe, *options)
    assert "each rank: " in text and "checkpoints: at most 3" in text and "time: about" not in text
    assert "of the host, beside that" in text, "where the states lie"


def test_an_unknown_profile_is_refused(shop: Workshop) -> None:
    text = told(shop, "pretrain", shop.recipe, "--dry-run", "--calibrate", 0, "--deepspeed-config", "zero4", code=2)
    assert "no profile" in text and "did you mean 'zero" in text


def test_what_is_measured_of_a_recipe_is_kept_and_not_taken_for_another(shop: Workshop) -> None:
    options = ("--gpus", "1,8", "--materials", "1e5", "--steps", 1, "--store", "mine.json")
    text = told(shop, "launch", "estimate", shop.recipe, *options)
    assert "a step, equal rows a rank" in text and "memory of a rank" in text and "100,000" in text
    again = told(shop, "launch", "estimate", "mine.json", "--gpus", "1,8", "--materials", "1e5")
    assert again == text
    assert "measured before" in told(shop, "launch", "estimate", shop.recipe, *options, code=2)


def test_the_figures_are_those_of_the_model(shop: Workshop) -> None:
    from launch.estimates.cluster import load_cluster

    (shop.folder / "work.json").write_text(WORK.model_dump_json())
    options = ("--cluster", "hgx-a100", "--gpus", "1,64", "--materials", "1e5", "--epochs", 3, "--json")
    found = json.loads(told(shop, "launch", "estimate", "work.json", *options))
    place = load_cluster("hgx-a100")
    there = WORK.on("A100", 0.35 * 312e12)
    for row in found["scaling"]:
        assert row["step_s"] == pytest.approx(step_time(there, place, row["gpus"]).total)
    assert {row["steps"] for row in found["training"]} == {3 * -(-100_000 // 6), 3 * -(-100_000 // 384)}
    third = json.loads(told(shop, "launch", "estimate", "work.json", *options, "--stage", 3))
    assert third["scaling"][1]["sent_bytes"] != found["scaling"][1]["sent_bytes"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus", "1,many"], "whole numbers"),
        (["--gpus", "nan"], "whole numbers"),
        (["--gpus", "1e400"], "whole numbers"),
        (["--materials", "1e300"], "whole numbers"),
        (["--cluster", "dgx"], "no description"),
        (["--measure"], "stays as it is"),
        (["--cluster", "dgx-h100", "--gpus", "1"], "cannot be said from cpu"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: list[str], said: str, shop: Workshop) -> None:
    (shop.folder / "work.json").write_text(WORK.model_copy(update={"operations": 0.0}).model_dump_json())
    assert said in told(shop, "launch", "estimate", "work.json", *options, code=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"zero_optimization": {"stage": 1}, "zero_optimization": {"stage": 2}}', "stands there twice"),
        ("[1]", "no table"),
        ("null", "no table"),
    ],
)
def test_settings_that_are_none_are_refused_before_anything_is_measured(text: str, said: str, shop: Workshop) -> None:
    (shop.folder / "ds.json").write_text(text)
    assert said in told(shop, "launch", "estimate", shop.recipe, "--deepspeed-config", "ds.json", code=2)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["launch", "estimate", "--store", "file/x"], "no folder file"),
        (["launch", "run", "--out", "file/x", "--dry-run"], "file is a file"),
        (["pretrain", "--out", "file/x/y"], "file is a file"),
    ],
)
def test_a_file_in_the_way_of_a_folder_is_named(command: list[str], said: str, shop: Workshop) -> None:
    (shop.folder / "file").touch()
    assert said in told(shop, *command, shop.recipe, code=2)


def test_what_lies_on_the_host_has_a_column(shop: Workshop) -> None:
    there = WORK.model_copy(update={"stage": 3, "buffers": Buffers(host_optimizer=True, host_weights=True)})
    (shop.folder / "work.json").write_text(there.model_dump_json())
    options = ("--cluster", "hgx-a100", "--gpus", "1", "--materials", "1e5")
    assert "of the host, ZeRO 3" in told(shop, "launch", "estimate", "work.json", *options)


def test_the_table_of_the_docs_is_the_one_of_its_file() -> None:
    from launch.estimates.cluster import load_cluster
    from launch.estimates.table import scaling_rows
    from launch.estimates.work import read_work

    root = Path(__file__).resolve().parents[2]
    work = read_work(root / "docs" / "examples" / "launch" / "assumed_on_a100.json")
    place = load_cluster("hgx-a100")
    assert work.on(place.accelerator.name, 1.0) is work
    page = (root / "docs" / "scaling.md").read_text()
    for row in scaling_rows(work, place, [1, 8, 16, 64, 256, 1024, 4096]):
        sent, step = f"{row['sent_bytes'] / 1e6:.0f}", f"{1e3 * row['step_s']:.1f}"
        start = f"| {row['gpus']:,} | {sent} | {step} | {row['samples_per_s']:,.0f} |"
        memory = f"{row['memory_bytes'] / 2**30:.2f}"
        assert f"\n{start} {row['efficiency']:.0%} | {row['bound']} | {memory} |" in page
